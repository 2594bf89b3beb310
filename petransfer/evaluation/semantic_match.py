"""Semantic exact match: find generated texts that differ from the target but have equal meaning.

One forward pass gives the first wrong token of each text. With this token, most texts can no longer have the meaning
of the target. Only the other texts are generated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petransfer.data.encoding import Encoded, decode
from petransfer.data.logical_forms import Semantics
from petransfer.data.task import Example
from petransfer.evaluation.batches import LOGITS, compute_dtype, in_batches, noise_of
from petransfer.evaluation.generation import generations
from petransfer.models.loading import Loaded
from petransfer.models.rotary_positions import longest_shared_length
from petransfer.models.text_part import text_config
from petransfer.training.batches import IGNORED, collate
from petransfer.training.distributed import needs_all_processes
from petransfer.training.losses import logits_at_labels

# Texts are first generated up to 16 tokens. Those that may still mean the same as the target are generated again, up to
# the next number of tokens. Most texts can be excluded after a few tokens.
STAGES = (16, 64, sys.maxsize)


@dataclass(frozen=True)
class SemanticMatches:
    """The comparison of meanings, for texts that differ from the target's string.

    Attributes:
        same: for each text, whether its meaning equals the target's meaning.
        generated: number of texts that were generated.
        unfinished: number of texts that were cut before their meaning was certain. These texts count as wrong.
    """

    same: tuple[bool, ...]
    generated: int
    unfinished: int


def compare_meanings(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    semantics: Semantics,
    batch_size: int,
) -> SemanticMatches:
    """Compare the meanings of greedily generated texts and targets.

    Args:
        examples: examples whose greedily generated text differs from the target's string.
        encoded: token ids of the examples.
        semantics: compares the meanings of two texts.
        batch_size: examples per forward pass. It is halved when memory runs out.
    """
    begun = beginnings(model, loaded, encoded, batch_size)
    texts = decode([ids or () for ids in begun], loaded.tokenizer)
    undecided = [
        at
        for at, (ids, text) in enumerate(zip(begun, texts, strict=True))
        if ids is None or semantics.may_become(examples[at].target, text.rstrip("\ufffd"))
    ]
    generated, same = len(undecided), [False] * len(examples)
    for most in STAGES:
        limits = [min(most, 2 * len(encoded[at].target_ids) + 8) for at in undecided]
        found = generations(model, loaded, [encoded[at].input_ids for at in undecided], limits)
        left = []
        for at, one in zip(undecided, found, strict=True):
            if one.ended:
                same[at] = semantics.same(examples[at].target, one.text)
            elif semantics.may_become(examples[at].target, one.text.rstrip("\ufffd")):
                left.append(at)
        undecided = left
    return SemanticMatches(tuple(same), generated, len(undecided))


def beginnings(
    model: torch.nn.Module, loaded: Loaded, encoded: Sequence[Encoded], batch_size: int
) -> list[tuple[int, ...] | None]:
    """Return the tokens of each greedily generated text, up to and including the first wrong token.

    An entry is None if the first wrong token is uncertain.
    """

    def one(chosen: list[int]) -> list[tuple[int, ...] | None]:
        return _beginnings_of_batch(model, loaded, [encoded[at] for at in chosen])

    tokens = max(1, LOGITS // int(text_config(loaded.model.config).vocab_size))
    shared = longest_shared_length(loaded.model.config)
    return in_batches(encoded, batch_size, one, not needs_all_processes(model), tokens, shared)


@torch.inference_mode()
def _beginnings_of_batch(
    model: torch.nn.Module, loaded: Loaded, encoded: Sequence[Encoded]
) -> list[tuple[int, ...] | None]:
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate(encoded, loaded.layout).items()}
    labels_bt = batch["labels"]
    raw_btv = logits_at_labels(model, batch)
    valid_bt = labels_bt != IGNORED
    noise_b1 = noise_of(raw_btv, valid_bt, compute_dtype(model)).unsqueeze(-1)
    top_bt2, token_bt2 = raw_btv.float().topk(2, dim=-1)
    token_bt = token_bt2[..., 0]
    unsure_bt = (top_bt2[..., 0] - top_bt2[..., 1] <= noise_b1) & valid_bt
    miss_bt = (token_bt != labels_bt) & valid_bt
    found: list[tuple[int, ...] | None] = []
    for at, row in enumerate(encoded):
        offset = int(valid_bt[at].int().argmax())
        first = int(miss_bt[at].int().argmax())
        certain = bool(miss_bt[at].any()) and not bool(unsure_bt[at, : first + 1].any())
        found.append((*row.target_ids[: first - offset], int(token_bt[at, first])) if certain else None)
    return found
