"""Profile some work: the share of its time by kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType


def shares(run: Callable[[], object], parts: Mapping[str, Sequence[str]], device: torch.device) -> dict[str, float]:
    """Return each part's percentage of the operations' own time on the device, the largest first.

    parts: words that occur in the names of a part's operations. The first match counts; the rest is `other`.
    """
    on_card = device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_card else [])]
    profiler: Any = torch.profiler.profile(activities=kinds)
    with profiler as seen:
        run()
    sums: dict[str, float] = {}
    for event in seen.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel's time is also counted for the operation that launched it
        own = event.self_device_time_total if on_card else event.self_cpu_time_total
        part = next((part for part, words in parts.items() if any(word in event.key for word in words)), "other")
        sums[part] = sums.get(part, 0.0) + own
    total = sum(sums.values())
    return {part: round(100 * own / total, 1) for part, own in sorted(sums.items(), key=lambda item: -item[1])}
