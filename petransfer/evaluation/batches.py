"""Evaluate examples in batches, and compute how far rounding can change logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from petransfer.data.encoding import Encoded
from petransfer.training.autocast import is_autocast
from petransfer.training.out_of_memory import OutOfMemory, raising_out_of_memory

# Two logits are a near-tie if they differ by at most this many times the rounding error of the largest logit.
NOISE_UNITS = 16.0

# The largest number of logits in memory at once, where whole logits are needed.
LOGITS = 1 << 26

T = TypeVar("T")


def halve_until_it_fits(function: Callable[[list[int]], Sequence[T]], chosen: list[int], halves: bool) -> Sequence[T]:
    """Call a function on a batch of indices. Each time memory runs out, call it again on the first half of the batch.

    Args:
        function: takes indices, and returns one result per index.
        halves: False if several processes share a forward pass, because the others would keep the larger batch.

    Returns:
        The results of the first indices, as many as fit in memory.

    Raises:
        OutOfMemory: memory is too small for one index, or for the whole batch if `halves` is False.
    """
    while True:
        try:
            with raising_out_of_memory():
                return function(chosen)
        except OutOfMemory:
            if len(chosen) == 1 or not halves:
                raise
        chosen = chosen[: (len(chosen) + 1) // 2]


def in_batches(
    encoded: Sequence[Encoded],
    batch_size: int,
    function: Callable[[list[int]], Sequence[T]],
    halves: bool = True,
    tokens: int | None = None,
    shared_length: int | None = None,
) -> list[T]:
    """Call a function on batches of examples, and return the results in the order of the examples.

    Args:
        encoded: token ids of the examples.
        batch_size: largest number of examples in a batch.
        function: takes the indices of a batch's examples, and returns one result per index.
        halves: whether to halve the batch when memory runs out.
        tokens: largest number of input and target tokens in a batch. None means no limit.
        shared_length: examples with more tokens than this are only put into a batch with examples of exactly the same
            length. None means that examples of any lengths can share a batch.

    Raises:
        OutOfMemory: memory is too small for one example, or for one batch with `halves` off.
    """
    lengths = [len(one.input_ids) + len(one.target_ids) for one in encoded]
    # The longest examples come first, so that running out of memory shows at once.
    order = sorted(range(len(encoded)), key=lambda at: -lengths[at])
    given: dict[int, T] = {}
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        count = batch_size if tokens is None else min(batch_size, max(1, tokens // longest))
        chosen = order[start : start + count]
        if shared_length is not None and longest > shared_length:
            chosen = [at for at in chosen if lengths[at] == longest]
        rows = halve_until_it_fits(function, chosen, halves)
        if len(rows) < len(chosen):
            batch_size = len(rows)
            chosen = chosen[:batch_size]
        given |= zip(chosen, rows, strict=True)
        start += len(chosen)
    return [given[at] for at in range(len(encoded))]


def noise_of(raw_btv: torch.Tensor, valid_bt: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """Return, for each example, how far rounding can change the difference of two logits: shape (b,).

    Args:
        raw_btv: logits in the model's output dtype.
        valid_bt: True at positions with a label.
        compute: least precise dtype of the model's computations.
    """
    coarsest = raw_btv.dtype if raw_btv.dtype != torch.float32 else compute
    return noise_at(raw_btv.float().abs().amax(-1).masked_fill(~valid_bt, 0.0).amax(-1), coarsest)


def noise_at(largest: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """Return how far rounding can change the difference of two logits.

    Args:
        largest: largest absolute logits, any shape. The result has this shape.
        compute: least precise dtype of the model's computations.
    """
    return NOISE_UNITS * torch.finfo(compute).eps * largest


def compute_dtype(model: torch.nn.Module) -> torch.dtype:
    """Return the least precise dtype of a model's computations.

    This is the least precise dtype of the weights. It is bfloat16 for a model with quantised weights, and for a model
    with fp32 weights whose forward pass is computed in bfloat16.
    """
    kinds = {value.dtype for value in model.parameters() if value.is_floating_point()}
    if is_autocast(model) or any(not value.is_floating_point() for value in model.parameters()):
        kinds.add(torch.bfloat16)
    return max(kinds, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
