"""Choose a label from a closed set with one forward pass.

At each position, greedy decoding is restricted to tokens that continue a label.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from petransfer.data.encoding import Encoded, Layout, encode_targets
from petransfer.evaluation.batches import LOGITS
from petransfer.models.loading import Loaded
from petransfer.models.text_part import text_config
from petransfer.models.wrappers import base_model_of, evaluating
from petransfer.training.batches import IGNORED, Tensors, collate
from petransfer.training.distributed import needs_all_processes
from petransfer.training.losses import chunked_head, hidden_states, logits_at_labels
from petransfer.training.out_of_memory import OutOfMemory, raising_out_of_memory


@torch.inference_mode()
def choose_labels(
    model: torch.nn.Module, loaded: Loaded, encoded: Sequence[Encoded], labels: Sequence[str]
) -> list[str]:
    """Return the chosen label for each input, in the order of the inputs.

    Args:
        encoded: token ids of the examples. Their targets are ignored.
        labels: all labels as texts.

    Raises:
        OutOfMemory: memory is too small for one input with all labels, or for one batch of a sharded model.
    """
    tokens = encode_targets(labels, loaded.tokenizer, loaded.layout)
    order = sorted(range(len(encoded)), key=lambda at: -len(encoded[at].input_ids))
    width = max(map(len, tokens)) + (0 if loaded.layout.encoder_decoder else len(encoded[order[0]].input_ids))
    vocabulary = int(
        text_config(loaded.model.config).vocab_size
    )  # from the configuration, because the embeddings may be wrapped
    at_once = max(1, LOGITS // (len(labels) * width * vocabulary))
    chosen_labels: dict[int, str] = {}
    start = 0
    while start < len(order):
        chosen = order[start : start + at_once]
        try:
            with evaluating(model), raising_out_of_memory():
                scores = _scores(model, loaded, [encoded[at].input_ids for at in chosen], tokens)
        except OutOfMemory:
            if at_once == 1 or needs_all_processes(model):
                raise
            at_once = (at_once + 1) // 2
            continue
        chosen_labels |= {at: labels[_greedy_label(row, tokens)] for at, row in zip(chosen, scores, strict=True)}
        start += len(chosen)
    return [chosen_labels[at] for at in range(len(encoded))]


def _scores(
    model: torch.nn.Module, loaded: Loaded, inputs: Sequence[tuple[int, ...]], tokens: Sequence[tuple[int, ...]]
) -> list[list[list[float]]]:
    device = next(model.parameters()).device
    rows = [Encoded(source, target) for source in inputs for target in tokens]
    batch = {name: tensor.to(device) for name, tensor in collate(rows, loaded.layout).items()}
    # A call of the encoder alone would leave out peft's virtual tokens.
    if loaded.layout.encoder_decoder and not _adds_inputs(model):
        # The encoder reads each input once, not once for each label.
        count = len(tokens)
        ids, mask = batch.pop("input_ids")[::count], batch["attention_mask"]
        read = base_model_of(model).get_encoder()(input_ids=ids, attention_mask=mask[::count], return_dict=True)
        read.last_hidden_state = read.last_hidden_state.repeat_interleave(count, 0)
        batch["encoder_outputs"] = read
    valid_bt = batch["labels"] != IGNORED
    wanted = iter(_logits_of_labels(model, loaded, batch, valid_bt).tolist())
    found = [list(itertools.islice(wanted, count)) for count in valid_bt.sum(1).tolist()]
    return [found[at : at + len(tokens)] for at in range(0, len(found), len(tokens))]


def _logits_of_labels(model: torch.nn.Module, loaded: Loaded, batch: Tensors, valid_bt: torch.Tensor) -> torch.Tensor:
    """Return the logits (n,) of the n labels at the positions where `valid_bt` is true, row by row."""
    head, labels_n = chunked_head(model, valid_bt.numel()), batch["labels"][valid_bt]
    if head is None:
        logits_nv = logits_at_labels(model, batch)[valid_bt]
        return _chosen(logits_nv, labels_n, loaded.layout)
    # With a large vocabulary, the logits of all labels of a single input can be too many for the memory.
    hidden_nd, size = hidden_states(model, head, batch)[valid_bt.flatten()], head.chunk_rows()
    chunks = zip(torch.split(hidden_nd, size), torch.split(labels_n, size), strict=True)
    return torch.cat([_chosen(head.logits(hidden), labels, loaded.layout) for hidden, labels in chunks])


def _chosen(logits_nv: torch.Tensor, labels_n: torch.Tensor, layout: Layout) -> torch.Tensor:
    wanted_n = logits_nv.gather(1, labels_n[:, None])[:, 0]
    ends_n = logits_nv[:, list(layout.end_ids)].amax(1)  # a label ends with any of the end tokens
    return torch.where(labels_n == layout.eos_id, ends_n, wanted_n).float()


def _adds_inputs(model: torch.nn.Module) -> bool:
    """Return whether peft adds virtual tokens before the input."""
    config = getattr(model, "active_peft_config", None)
    return bool(config is not None and config.is_prompt_learning)


def _greedy_label(scores: Sequence[Sequence[float]], tokens: Sequence[tuple[int, ...]]) -> int:
    """Return the index of the chosen label. `scores`: logits of each label's tokens."""
    # At each position, the token with the largest logit is taken, and labels with another token are dropped. If
    # unrestricted greedy decoding generates one of the labels, that label is chosen.
    left, position = list(range(len(tokens))), 0
    while len(left) > 1:
        best = max(left, key=lambda label: scores[label][position])
        left = [label for label in left if tokens[label][position] == tokens[best][position]]
        position += 1
    return left[0]
