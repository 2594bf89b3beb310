"""Semantic exact match: answers that miss the target's string are generated where they may yet mean the same.

A forward pass shows how far greedy decoding follows the target and what it says there instead. Most answers can no
longer mean the same after that; only the others are generated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petransfer.data.encoding import Encoded, decode
from petransfer.data.logical_forms import Semantics
from petransfer.data.task import Example
from petransfer.evaluation.batches import compute_dtype, in_batches, noise_of
from petransfer.evaluation.generation import answers
from petransfer.models.loading import Loaded
from petransfer.training.batches import IGNORED, collate
from petransfer.training.distributed.fsdp import is_split

# Answers are generated up to so many pieces, and on only where they may yet mean the same: most go astray early.
STAGES = (16, 64, sys.maxsize)


@dataclass(frozen=True)
class Meant:
    """What was found of the answers that miss the string.

    same: whether each means what its target means. generated: how many were generated. unfinished: of those, how many
        might yet have meant the same when they were cut after twice the pieces of the target; they count as wrong.
    """

    same: tuple[bool, ...]
    generated: int
    unfinished: int


def meanings(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    semantics: Semantics,
    batch_size: int,
) -> Meant:
    """Whether the greedy answer to each example, none of which is the target's string, means the same."""
    begun = beginnings(model, loaded, encoded, batch_size)
    texts = decode([ids or () for ids in begun], loaded.tokenizer)
    open_at = [
        at
        for at, (ids, text) in enumerate(zip(begun, texts, strict=True))
        if ids is None or semantics.may_become(examples[at].target, text.rstrip("\ufffd"))
    ]
    generated, same = len(open_at), [False] * len(examples)
    for most in STAGES:
        limits = [min(most, 2 * len(encoded[at].target_ids) + 8) for at in open_at]
        said = answers(model, loaded, [encoded[at].input_ids for at in open_at], limits)
        left = []
        for at, answer in zip(open_at, said, strict=True):
            if answer.ended:
                same[at] = semantics.same(examples[at].target, answer.text)
            elif semantics.may_become(examples[at].target, answer.text.rstrip("\ufffd")):
                left.append(at)
        open_at = left
    return Meant(tuple(same), generated, len(open_at))


def beginnings(
    model: torch.nn.Module, loaded: Loaded, encoded: Sequence[Encoded], batch_size: int
) -> list[tuple[int, ...] | None]:
    """How each greedy answer begins: the target's pieces up to the first miss, and the piece said there.

    None where that is not certain: a lead up to the miss is within rounding, or nothing is missed.
    """

    def one(chosen: list[int]) -> list[tuple[int, ...] | None]:
        return _begin_batch(model, loaded, [encoded[at] for at in chosen])

    return in_batches(encoded, batch_size, one, halves=not is_split(model))


@torch.inference_mode()
def _begin_batch(model: torch.nn.Module, loaded: Loaded, encoded: Sequence[Encoded]) -> list[tuple[int, ...] | None]:
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate(encoded, loaded.layout).items()}
    labels_bt = batch.pop("labels")
    raw_btv = model(**batch, use_cache=False).logits
    asked_bt = labels_bt != IGNORED
    noise_b1 = noise_of(raw_btv, asked_bt, compute_dtype(model)).unsqueeze(-1)
    top_bt2, said_bt2 = raw_btv.float().topk(2, dim=-1)
    said_bt = said_bt2[..., 0]
    unsure_bt = (top_bt2[..., 0] - top_bt2[..., 1] <= noise_b1) & asked_bt
    miss_bt = (said_bt != labels_bt) & asked_bt
    found: list[tuple[int, ...] | None] = []
    for at, row in enumerate(encoded):
        offset = int(asked_bt[at].int().argmax())
        first = int(miss_bt[at].int().argmax())
        certain = bool(miss_bt[at].any()) and not bool(unsure_bt[at, : first + 1].any())
        found.append((*row.target_ids[: first - offset], int(said_bt[at, first])) if certain else None)
    return found
