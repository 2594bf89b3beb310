"""Profile a function: which share of its time each kind of operation takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType


def shares(run: Callable[[], object], parts: Mapping[str, Sequence[str]], device: torch.device) -> dict[str, float]:
    """Run a function and return the percentage of the device's time for each kind of operation, the largest first.

    Args:
        run: the function.
        parts: by kind of operation, words that occur in the names of such operations. If several kinds match an
            operation, the first one counts. An operation without a match counts as `other`.
        device: the device whose time is measured.
    """
    on_card = device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_card else [])]
    profiler: Any = torch.profiler.profile(activities=kinds)
    with profiler as seen:
        run()
    sums: dict[str, float] = {}
    for event in seen.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # this is a kernel; its time is already counted for the operation that launched it
        own = event.self_device_time_total if on_card else event.self_cpu_time_total
        part = next((part for part, words in parts.items() if any(word in event.key for word in words)), "other")
        sums[part] = sums.get(part, 0.0) + own
    total = sum(sums.values())
    return {part: round(100 * own / total, 1) for part, own in sorted(sums.items(), key=lambda item: -item[1])}
