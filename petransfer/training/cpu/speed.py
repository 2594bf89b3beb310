"""Measure which bits and which number of threads are fastest on this CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from petransfer.training.cpu.processor import available_cores

# Sizes of a typical matrix product of a LoRA step: tokens of a batch, inputs and outputs of a layer.
TOKENS, INPUTS, OUTPUTS = 4096, 256, 1024
DTYPES: dict[Literal[16, 32], torch.dtype] = {32: torch.float32, 16: torch.bfloat16}

# A smaller number of threads is recommended if it reaches this share of the highest speed.
NEARLY = 0.9


@dataclass(frozen=True)
class Speed:
    """The speed of matrix products.

    flops: floating-point operations per second, the median of several products.
    """

    bits: Literal[16, 32]
    threads: int
    flops: float


def measure_speeds(seconds: float = 2.0) -> list[Speed]:
    """Measure matrix products at 32 and 16 bits with 1, 2, 4, ... threads, in about `seconds` seconds."""
    counts = list(_powers_of_two(available_cores()))
    before = torch.get_num_threads()
    try:
        return [
            measure_speed(bits, threads, seconds / (len(counts) * len(DTYPES))) for threads in counts for bits in DTYPES
        ]
    finally:
        torch.set_num_threads(before)


def recommended(speeds: Sequence[Speed]) -> Speed:
    """Return the measurement with the fewest threads that has at least `NEARLY` times the highest speed.

    The returned measurement has the same bits as the fastest measurement.
    """
    best = max(speeds, key=lambda speed: speed.flops)
    nearly = [speed for speed in speeds if speed.bits == best.bits and speed.flops >= NEARLY * best.flops]
    return min(nearly, key=lambda speed: speed.threads)


def _powers_of_two(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def measure_speed(bits: Literal[16, 32], threads: int, seconds: float) -> Speed:
    """Time matrix products for about `seconds` seconds. The process keeps this number of threads afterwards."""
    torch.set_num_threads(threads)
    rows = torch.randn(TOKENS, INPUTS).to(DTYPES[bits])
    weight = torch.randn(OUTPUTS, INPUTS).to(DTYPES[bits])
    torch.nn.functional.linear(rows, weight)  # not timed, because it packs the weight and starts the threads
    taken, ends_at = list[float](), time.perf_counter() + seconds
    while not taken or time.perf_counter() < ends_at:
        started = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        taken.append(time.perf_counter() - started)
    return Speed(bits, threads, 2 * TOKENS * INPUTS * OUTPUTS / statistics.median(taken))
