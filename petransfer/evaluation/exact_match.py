"""Exact match from one forward pass per example, exact because greedy decoding is settled position by position.

Greedy decoding says the target exactly when, given the target's own beginning, the largest logit is the target's piece
at every position, the end included. Two things one pass cannot settle, and `generate` then does: near-ties, whose
lead is within rounding, and a first miss whose piece still spells the target's next characters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from petransfer.data.encoding import Encoded, decode
from petransfer.data.logical_forms import Semantics
from petransfer.data.task import Example
from petransfer.evaluation.batches import compute_dtype, in_batches, noise_at, noise_of
from petransfer.evaluation.generation import Answer, answers
from petransfer.evaluation.semantic_match import Meant, meanings
from petransfer.models.loading import Loaded
from petransfer.training.batches import IGNORED, Tensors, collate
from petransfer.training.cpu.cpu_step import Lean
from petransfer.training.distributed.fsdp import is_split

AUDITED = 32

# Tokens of a pass on a CPU where no padding is computed: so few that attention meets lengths that are alike. Seen to
# be as fast as more on SCAN, and three times as fast as 256 examples on a part of COGS.
PACKED_TOKENS = 1024


@dataclass(frozen=True)
class Scored:
    """One test example's outcome.

    margin: the smallest lead, over the positions, of the target piece's logit over the largest other; negative where
        the model would say something else. near_tie: the margin is within the noise, or the first miss may spell the
        same string. log_prob: summed over the target, in nats. tokens: target pieces, the end included. said: what
        generation gave, of the near-ties and the audited examples; None of the others.
    semantic_correct: whether the answer means what the target means, None for tasks that do not say when it does.
    """

    index: int
    category: str
    correct: bool
    margin: float
    log_prob: float
    tokens: int
    tokens_correct: int
    near_tie: bool = False
    said: str | None = None
    semantic_correct: bool | None = None


@dataclass(frozen=True)
class Evaluation:
    """The outcomes in the order of the examples, and what the audit by generation found.

    disagreements: audited examples, near-ties apart, on which generation and the forward pass differ, in string or in
        meaning; above zero is an error to look into.
    meant: of the answers that miss the string, for tasks that say when two strings mean the same.
    by_generation: whether every example was audited, and what was generated decides.
    """

    scored: tuple[Scored, ...]
    near_ties: int
    audited: int
    disagreements: int
    meant: Meant | None = None
    by_generation: bool = False

    @property
    def exact_match(self) -> float:
        """Share of examples answered exactly, 0 to 1."""
        return sum(row.correct for row in self.scored) / len(self.scored)


def evaluate(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 256,
    audited: int = AUDITED,
    seed: int = 0,
    semantics: Semantics | None = None,
    by_generation: bool = False,
) -> Evaluation:
    """Scores every example by one forward pass, settles near-ties by generation, and audits `audited` random others.

    With `semantics` the answers that miss the target's string are also judged by their meaning. With `by_generation`
    all are audited, and an answer counts as it was generated, whatever the forward pass says of it.
    """
    was_training = model.training
    model.eval()
    scored = score(model, loaded, examples, encoded, batch_size)
    ties, chosen = _to_generate(scored, len(scored) if by_generation else audited, seed)
    limit = max(len(row.target_ids) for row in encoded) * (2 if semantics else 1) + 8
    both = [*ties, *chosen]
    texts = answers(model, loaded, [encoded[position].input_ids for position in both], [limit] * len(both))
    said = dict(zip(both, texts, strict=True))
    for position, answer in said.items():
        scored[position] = replace(scored[position], said=answer.text)
    for position in ties:
        scored[position] = replace(scored[position], correct=said[position].text == examples[position].target)
    meant = _judge(model, loaded, examples, encoded, scored, semantics, batch_size) if semantics else None
    wrong = sum(_differs(scored[position], examples[position].target, said[position], semantics) for position in chosen)
    if by_generation:
        scored = [_as_said(row, examples[at].target, said[at], semantics) for at, row in enumerate(scored)]
        meant = meant and replace(meant, same=tuple(bool(row.semantic_correct) for row in scored if not row.correct))
    model.train(was_training)
    return Evaluation(tuple(scored), len(ties), len(chosen), wrong, meant, by_generation)


def _to_generate(scored: Sequence[Scored], audited: int, seed: int) -> tuple[list[int], list[int]]:
    """The positions of the near-ties, and of `audited` others that are drawn."""
    ties = [position for position, row in enumerate(scored) if row.near_tie]
    others = [position for position, row in enumerate(scored) if not row.near_tie]
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:audited].tolist()
    return ties, [others[position] for position in drawn]


def _means_the_same(target: str, answer: Answer, semantics: Semantics) -> bool:
    return answer.ended and semantics.same(target, answer.text)


def _as_said(row: Scored, target: str, answer: Answer, semantics: Semantics | None) -> Scored:
    """The outcome by what was generated alone."""
    correct = answer.text == target
    meant = correct or _means_the_same(target, answer, semantics) if semantics else None
    return replace(row, correct=correct, semantic_correct=meant)


def _differs(row: Scored, target: str, answer: Answer, semantics: Semantics | None) -> bool:
    """Whether an audited answer is not what was found without generating it."""
    if row.correct != (answer.text == target):
        return True
    return semantics is not None and row.semantic_correct != _means_the_same(target, answer, semantics)


def _judge(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    scored: list[Scored],
    semantics: Semantics,
    batch_size: int,
) -> Meant:
    """Fills in `semantic_correct`: the string itself means the same, and of the rest what `meanings` finds."""
    missed = [position for position, row in enumerate(scored) if not row.correct]
    of = [examples[position] for position in missed]
    meant = meanings(model, loaded, of, [encoded[position] for position in missed], semantics, batch_size)
    same = dict(zip(missed, meant.same, strict=True))
    scored[:] = [replace(row, semantic_correct=same.get(position, True)) for position, row in enumerate(scored)]
    return meant


@torch.inference_mode()
def score(
    model: torch.nn.Module, loaded: Loaded, examples: Sequence[Example], encoded: Sequence[Encoded], batch_size: int
) -> list[Scored]:
    """One forward pass for every example."""

    found = Lean(model, scoring=True)
    lean = found if found.usable and found.packs else None

    def one(chosen: list[int]) -> list[Scored]:
        return _score_batch(model, loaded, [examples[at] for at in chosen], [encoded[at] for at in chosen], lean)

    with lean.step() if lean else contextlib.nullcontext():
        tokens = PACKED_TOKENS if lean else None
        return in_batches(encoded, batch_size, one, halves=not is_split(model), tokens=tokens)


def _score_batch(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    lean: Lean | None,
) -> list[Scored]:
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate(encoded, loaded.layout).items()}
    asked_bt = batch["labels"] != IGNORED
    wanted_bt, log_prob_bt, rival_bt, rival_id_bt, noise_b = _judged(lean, batch) if lean else _plainly(model, batch)
    lead_bt = wanted_bt - rival_bt
    margin_b = lead_bt.masked_fill(~asked_bt, torch.inf).amin(-1)
    hit_bt = (lead_bt > 0) & asked_bt
    first_miss_b = ((lead_bt <= 0) & asked_bt).int().argmax(-1)
    correct_b = margin_b > 0
    near_b = margin_b.abs() <= noise_b
    # A miss beyond the noise settles it, however many near-ties stand beside it.
    rows = []
    offset_b = asked_bt.int().argmax(-1)
    for at, example in enumerate(examples):
        near, correct = bool(near_b[at]), bool(correct_b[at])
        if not correct and not near:
            first = int(first_miss_b[at])
            said = [*encoded[at].target_ids[: first - int(offset_b[at])], int(rival_id_bt[at, first])]
            near = _may_spell(said, example.target, loaded)
        rows.append(
            Scored(
                index=example.index,
                category=example.category,
                correct=correct,
                margin=float(margin_b[at]),
                log_prob=float(log_prob_bt[at].sum(dtype=torch.float64)),
                tokens=len(encoded[at].target_ids),
                tokens_correct=int(hit_bt[at].sum()),
                near_tie=near,
            )
        )
    return rows


def _plainly(model: torch.nn.Module, batch: Tensors) -> tuple[torch.Tensor, ...]:
    """(b, t) each: the target's logit and log-probability, the largest other logit and its piece; (b,): the noise."""
    labels_bt = batch["labels"]
    raw_btv = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    logits_btv = raw_btv.float()
    asked_bt = labels_bt != IGNORED
    wanted_bt1 = labels_bt.clamp(min=0).unsqueeze(-1)
    wanted_bt = logits_btv.gather(-1, wanted_bt1).squeeze(-1)
    log_prob_bt = (wanted_bt - logits_btv.logsumexp(-1)).masked_fill(~asked_bt, 0.0)
    noise_b = noise_of(raw_btv, asked_bt, compute_dtype(model))
    return wanted_bt, log_prob_bt, *logits_btv.scatter(-1, wanted_bt1, -torch.inf).max(-1), noise_b


def _judged(lean: Lean, batch: Tensors) -> tuple[torch.Tensor, ...]:
    """The same with no padding read and no logits kept."""
    shape = batch["labels"].shape
    found = lean.judge(batch)

    def spread(values_n: torch.Tensor) -> torch.Tensor:
        return values_n.new_zeros(shape.numel()).index_copy_(0, found.at, values_n).view(shape)

    columns = (found.wanted, found.log_prob, found.rival, found.rival_id, found.largest)
    *most, largest_bt = (spread(values_n) for values_n in columns)
    return *most, noise_at(largest_bt.amax(-1), torch.float32)


def _may_spell(said: list[int], target: str, loaded: Loaded) -> bool:
    """Whether a beginning that is not the target's own pieces could still become the target's string."""
    if said[-1] == loaded.layout.eos_id:
        return decode([said[:-1]], loaded.tokenizer)[0] == target
    text = decode([said], loaded.tokenizer)[0].rstrip("\ufffd")
    return target.startswith(text) and text != decode([said[:-1]], loaded.tokenizer)[0]


def summary(evaluation: Evaluation) -> dict[str, object]:
    """What a run's result.json says of one part: percentages of exact match, per category too, and the audit.

    Where the task says when two strings mean the same, `semantic_exact_match` stands beside each `exact_match`.
    """
    groups: dict[str, list[Scored]] = {}
    for row in evaluation.scored:
        groups.setdefault(row.category, []).append(row)
    tokens = sum(row.tokens for row in evaluation.scored)
    meant = evaluation.meant
    return {
        **_shares(evaluation.scored),
        "log_prob_per_token": sum(row.log_prob for row in evaluation.scored) / tokens,
        "token_accuracy": 100 * sum(row.tokens_correct for row in evaluation.scored) / tokens,
        "categories": {name: _shares(rows) for name, rows in sorted(groups.items())},
        "near_ties": evaluation.near_ties,
        "audited": evaluation.audited,
        "disagreements": evaluation.disagreements,
        **({"by_generation": True} if evaluation.by_generation else {}),
        **({"generated": meant.generated, "unfinished": meant.unfinished} if meant else {}),
    }


def _shares(rows: Sequence[Scored]) -> dict[str, float]:
    """Percentages of the rows that are right, and how many rows there are."""
    shares = {"exact_match": 100 * sum(row.correct for row in rows) / len(rows)}
    if all(row.semantic_correct is not None for row in rows):
        shares["semantic_exact_match"] = 100 * sum(bool(row.semantic_correct) for row in rows) / len(rows)
    return shares | {"examples": len(rows)}
