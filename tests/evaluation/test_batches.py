"""Batches of an evaluation have a limited number of tokens, and are halved when memory runs out."""

from __future__ import annotations

import pytest
import torch

from petransfer.data.encoding import Encoded
from petransfer.evaluation.batches import compute_dtype, in_batches
from petransfer.training.autocast import autocast_forward

ROWS = [Encoded((3,) * (size // 2), (3,) * (size - size // 2)) for size in (100, 600, 300, 600, 100, 2000, 300)]


def test_a_batch_has_at_most_the_given_tokens_or_one_example() -> None:
    passes: list[list[int]] = []

    def told(chosen: list[int]) -> list[int]:
        passes.append(chosen)
        return chosen

    assert in_batches(ROWS, 3, told, tokens=1000) == list(range(7))
    assert passes == [[5], [1], [3], [2, 6, 0], [4]]


def test_a_batch_is_halved_until_it_fits_in_memory() -> None:
    tried: list[int] = []

    def short(chosen: list[int]) -> list[int]:
        tried.append(len(chosen))
        if len(chosen) > 1:
            raise MemoryError
        return chosen

    assert in_batches(ROWS, 256, short, tokens=10_000) == list(range(7))
    assert tried == [5, 3, 2, *[1] * 7]


def test_one_example_that_is_too_large_is_tried_once() -> None:
    tried: list[int] = []

    def never(chosen: list[int]) -> list[int]:
        tried.append(len(chosen))
        raise MemoryError

    with pytest.raises(MemoryError):
        in_batches(ROWS, 256, never, tokens=1000)
    assert tried == [1]


@pytest.mark.parametrize(
    ("dtype", "autocast", "expected"),
    [
        (torch.float32, False, torch.float32),
        (torch.float16, False, torch.float16),
        (torch.bfloat16, False, torch.bfloat16),
        (torch.float32, True, torch.bfloat16),
    ],
)
def test_compute_dtype_is_the_least_precise_dtype_of_the_computations(
    dtype: torch.dtype, autocast: bool, expected: torch.dtype
) -> None:
    model = torch.nn.Linear(4, 4).to(dtype)
    if autocast:
        autocast_forward(model, torch.device("cpu"))
    assert compute_dtype(model) == expected
