"""Score each example with one teacher-forced forward pass: correct or not, margin and log-probability.

An example is correct if, at every position, the target's token has the largest logit. One forward pass cannot decide
near-ties: two logits are nearly equal, or a wrong token has the next characters of the target.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from petransfer.data.encoding import Encoded, decode
from petransfer.data.task import Example
from petransfer.evaluation.batches import compute_dtype, in_batches, noise_at, noise_of
from petransfer.models.loading import Loaded
from petransfer.models.rotary_positions import change_while_generated, longest_shared_length
from petransfer.models.text_part import text_config
from petransfer.training.batches import IGNORED, Tensors, collate
from petransfer.training.cpu.cpu_step import CpuFastPath
from petransfer.training.distributed import needs_all_processes
from petransfer.training.losses import Head, chunked_head, hidden_states, logits_at_labels

# The largest number of tokens in a forward pass without padding on a CPU. Such a small pass has sequences of similar
# lengths. In measurements, it was as fast as larger passes on SCAN, and three times as fast as passes of 256 examples
# on a part of COGS.
PACKED_TOKENS = 1024


@dataclass(frozen=True)
class ScoredExample:
    """The outcome of one test example.

    Attributes:
        margin: smallest difference, over positions, between the target token's logit and the largest other logit.
        log_prob: log-probability of the target, summed over its tokens, in nats.
        tokens: number of target tokens, including the end token.
        tokens_correct: number of target tokens with the largest logit.
        near_tie: whether the forward pass cannot decide if the example is correct.
        prediction: generated text. None if no text was generated.
        semantic_correct: whether the text has the meaning of the target. None if meanings were not compared.
    """

    index: int
    category: str
    correct: bool
    margin: float
    log_prob: float
    tokens: int
    tokens_correct: int
    near_tie: bool = False
    prediction: str | None = None
    semantic_correct: bool | None = None


@torch.inference_mode()
def score(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    batch_size: int,
    compares_texts: bool = True,
) -> list[ScoredExample]:
    """Score every example with one forward pass of at most `batch_size` examples.

    Args:
        encoded: token ids of the examples.
        compares_texts: whether an example whose wrong token may spell the target is a near-tie. False: only logits
            that are nearly equal are near-ties.
    """
    found = CpuFastPath(model, scoring=True)
    fast_path = found if found.usable and found.skips_padding else None

    shared = longest_shared_length(loaded.model.config)
    long = {
        at
        for at, row in enumerate(encoded if shared else ())
        if change_while_generated(loaded.model.config, len(row.input_ids), len(row.target_ids))
    }

    def one(chosen: list[int]) -> list[ScoredExample]:
        parts = [examples[at] for at in chosen], [encoded[at] for at in chosen]
        rows = _score_batch(model, loaded, *parts, fast_path, compares_texts)
        return [replace(row, near_tie=True) if at in long else row for at, row in zip(chosen, rows, strict=True)]

    with fast_path.step() if fast_path else contextlib.nullcontext():
        tokens = PACKED_TOKENS if fast_path else None
        return in_batches(encoded, batch_size, one, not needs_all_processes(model), tokens, shared)


def _score_batch(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    fast_path: CpuFastPath | None,
    compares_texts: bool,
) -> list[ScoredExample]:
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate(encoded, loaded.layout).items()}
    valid_bt = batch["labels"] != IGNORED
    figures = _packed_figures(fast_path, batch) if fast_path else _padded_figures(model, batch)
    # copy from the GPU once per batch, not once per number
    valid_bt, wanted_bt, log_prob_bt, rival_bt, rival_id_bt, noise_b = (value.cpu() for value in (valid_bt, *figures))
    lead_bt = wanted_bt - rival_bt
    margin_b = lead_bt.masked_fill(~valid_bt, torch.inf).amin(-1)
    hit_bt = (lead_bt > 0) & valid_bt
    correct_b = margin_b > 0
    near_b = margin_b.abs() <= noise_b
    scored, end_ids = [], set(loaded.layout.end_ids)
    for row, example in enumerate(examples):
        near, correct, target_ids = bool(near_b[row]), bool(correct_b[row]), encoded[row].target_ids
        # If rounding cannot explain that a token is wrong, the example is wrong, even if other tokens are near-ties.
        # Exceptions are near-ties: a first wrong token that may spell the target, and an end token inside the target.
        if compares_texts and not correct and not near:
            generated = _until_first_wrong(target_ids, valid_bt[row], lead_bt[row], rival_id_bt[row])
            near = may_spell(generated, example.target, loaded)
        near = near or not end_ids.isdisjoint(target_ids[:-1])
        scored.append(
            ScoredExample(
                index=example.index,
                category=example.category,
                correct=correct,
                margin=float(margin_b[row]),
                log_prob=float(log_prob_bt[row].sum(dtype=torch.float64)),
                tokens=len(target_ids),
                tokens_correct=int(hit_bt[row].sum()),
                near_tie=near,
            )
        )
    return scored


def _until_first_wrong(
    target_ids: Sequence[int], valid_t: torch.Tensor, lead_t: torch.Tensor, rival_id_t: torch.Tensor
) -> list[int]:
    """Return the target's tokens before the first wrong token, and the token that the model generates in its place.

    Args:
        valid_t: whether a position has a token of the target.
        lead_t: the logit of the target's token minus the largest other logit.
        rival_id_t: id of the largest other token.
    """
    first_wrong = int(((lead_t <= 0) & valid_t).int().argmax())
    first_valid = int(valid_t.int().argmax())
    return [*target_ids[: first_wrong - first_valid], int(rival_id_t[first_wrong])]


def _padded_figures(model: torch.nn.Module, batch: Tensors) -> tuple[torch.Tensor, ...]:
    """Compute the numbers that decide the outcomes of a padded batch.

    Returns:
        Four tensors (b, t): logit and log-probability of the target's token, logit and id of the largest other token.
        One tensor (b,): largest rounding error of a difference of two logits.
    """
    labels_bt = batch["labels"]
    head = chunked_head(model, labels_bt.numel())
    if head is not None:
        return _chunked_figures(model, head, batch)
    raw_btv = logits_at_labels(model, batch)
    logits_btv = raw_btv.float()
    valid_bt = labels_bt != IGNORED
    wanted_bt1 = labels_bt.clamp(min=0).unsqueeze(-1)
    wanted_bt = logits_btv.gather(-1, wanted_bt1).squeeze(-1)
    log_prob_bt = (wanted_bt - logits_btv.logsumexp(-1)).masked_fill(~valid_bt, 0.0)
    noise_b = noise_of(raw_btv, valid_bt, compute_dtype(model))
    return wanted_bt, log_prob_bt, *logits_btv.scatter(-1, wanted_bt1, -torch.inf).max(-1), noise_b


def _chunked_figures(model: torch.nn.Module, head: Head, batch: Tensors) -> tuple[torch.Tensor, ...]:
    """Return the numbers of `_padded_figures`, computed for a few positions at a time."""
    labels_bt = batch["labels"]
    hidden_nd = hidden_states(model, head, batch)
    columns: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, len(hidden_nd), head.chunk_rows()):
        rows = slice(start, start + head.chunk_rows())
        logits_nv = head.logits(hidden_nd[rows])
        wanted_n1 = labels_bt.flatten()[rows].clamp(min=0).unsqueeze(-1)
        wanted_n = logits_nv.gather(-1, wanted_n1).squeeze(-1)
        log_prob_n, largest_n = wanted_n - logits_nv.logsumexp(-1), logits_nv.abs().amax(-1)
        columns.append((wanted_n, log_prob_n, *logits_nv.scatter_(-1, wanted_n1, -torch.inf).max(-1), largest_n))
    valid_bt = labels_bt != IGNORED
    wanted_bt, log_prob_bt, rival_bt, rival_id_bt, largest_bt = (
        torch.cat(column).view(labels_bt.shape) for column in zip(*columns, strict=True)
    )
    coarsest = hidden_nd.dtype if hidden_nd.dtype != torch.float32 else compute_dtype(model)
    noise_b = noise_at(largest_bt.masked_fill(~valid_bt, 0.0).amax(-1), coarsest)
    return wanted_bt, log_prob_bt.masked_fill(~valid_bt, 0.0), rival_bt, rival_id_bt, noise_b


def _packed_figures(fast_path: CpuFastPath, batch: Tensors) -> tuple[torch.Tensor, ...]:
    """Return the numbers of `_padded_figures`, computed on a CPU without padding."""
    shape = batch["labels"].shape
    found = fast_path.score_labels(batch)

    def spread(values_n: torch.Tensor) -> torch.Tensor:
        return values_n.new_zeros(shape.numel()).index_copy_(0, found.at, values_n).view(shape)

    columns = (found.wanted, found.log_prob, found.rival, found.rival_id, found.largest)
    *most, largest_bt = (spread(values_n) for values_n in columns)
    return *most, noise_at(largest_bt.amax(-1), torch.float32)


def may_spell(generated: list[int], target: str, loaded: Loaded) -> bool:
    """Return whether a text with a wrong last token can still become the target's string.

    Args:
        generated: first tokens of the text. Only the last token differs from the target's tokens.
    """
    if generated[-1] in loaded.layout.end_ids:
        return decode([generated[:-1]], loaded.tokenizer)[0] == target
    before, text = (decode([ids], loaded.tokenizer)[0] for ids in (generated[:-1], generated))
    shown = text.rstrip("\ufffd")
    # Models of the BART family generate a start token first, which the text does not show. A part of a character's
    # bytes does not change `shown` either. Other tokens that add nothing, such as a blank at the start or T5's
    # sentinels, count as wrong: models generate them before training, and generating all their texts is slow.
    adds = shown != before or shown != text or generated[-1] in _start_tokens(loaded)
    return adds and target.startswith(shown)


def _start_tokens(loaded: Loaded) -> set[int | None]:
    config = text_config(loaded.model.config)
    return {loaded.tokenizer.bos_token_id, getattr(config, "bos_token_id", None)}
