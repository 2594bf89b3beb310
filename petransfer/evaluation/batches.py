"""Evaluate examples in batches, which are halved when memory runs out, and compute how far rounding can move logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from petransfer.data.encoding import Encoded
from petransfer.training.out_of_memory import OutOfMemory, raising_out_of_memory

# Two logits are a near-tie if they differ by at most this many times the rounding error of the largest logit.
NOISE_UNITS = 16.0

T = TypeVar("T")


def in_batches(
    encoded: Sequence[Encoded],
    batch_size: int,
    function: Callable[[list[int]], Sequence[T]],
    halves: bool = True,
    tokens: int | None = None,
) -> list[T]:
    """Call a function on batches of examples and return its results in the order of `encoded`.

    The longest examples come first, so that running out of memory shows at once.

    Args:
        encoded: the token ids of the examples.
        batch_size: the largest number of examples in a batch.
        function: takes the indices of the examples in a batch and returns one result for each index.
        halves: whether to halve the batch when memory runs out. This must be off if other processes take part in the
            same forward pass, because they would not know of the smaller batch.
        tokens: the largest number of input and target tokens in a batch of several examples; None for no limit.

    Raises:
        OutOfMemory: memory is too small for one example; or it is too small for a batch, and `halves` is off.
    """
    order = sorted(range(len(encoded)), key=lambda at: -(len(encoded[at].input_ids) + len(encoded[at].target_ids)))
    given: dict[int, T] = {}
    start = 0
    while start < len(order):
        longest = len(encoded[order[start]].input_ids) + len(encoded[order[start]].target_ids)
        count = batch_size if tokens is None else min(batch_size, max(1, tokens // longest))
        chosen = order[start : start + count]
        try:
            with raising_out_of_memory():
                rows = function(chosen)
        except OutOfMemory:
            if len(chosen) == 1 or not halves:
                raise
            batch_size = (len(chosen) + 1) // 2
            continue
        given |= zip(chosen, rows, strict=True)
        start += len(chosen)
    return [given[at] for at in range(len(encoded))]


def noise_of(raw_btv: torch.Tensor, asked_bt: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """Return, for each example of a batch, how far rounding can move the difference of two logits: shape (b,).

    Args:
        raw_btv: the logits in the dtype in which the model returns them.
        asked_bt: True at the positions that have a label.
        compute: the coarsest dtype of the model's computations, as `compute_dtype` returns it.
    """
    coarsest = raw_btv.dtype if raw_btv.dtype != torch.float32 else compute
    return noise_at(raw_btv.float().abs().amax(-1).masked_fill(~asked_bt, 0.0).amax(-1), coarsest)


def noise_at(largest: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """Return how far rounding can move the difference of two logits.

    Args:
        largest: the largest absolute value of the logits; any shape, which the result also has.
        compute: the coarsest dtype of the computation.
    """
    return NOISE_UNITS * torch.finfo(compute).eps * largest


def compute_dtype(model: torch.nn.Module) -> torch.dtype:
    """Return the dtype whose rounding limits the precision of a model's logits.

    It is bfloat16 if some weights are bfloat16 or quantised, otherwise float32.
    """
    kinds = {value.dtype for value in model.parameters() if value.is_floating_point()}
    quantised = any(not value.is_floating_point() for value in model.parameters())
    return torch.bfloat16 if quantised or torch.bfloat16 in kinds else torch.float32
