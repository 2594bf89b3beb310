"""What side-by-side timings share: turns that alternate, medians, and the rate of the machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

from petransfer.data.encoding import Layout
from petransfer.errors import UserError
from petransfer.training.cpu.processor import processor

Side = TypeVar("Side", bound=Hashable)


def device_of(cpu: bool) -> torch.device:
    """The GPU where there is one, unless the CPU is asked for.

    Raises:
        UserError: there are several, which other sides would share the work among.
    """
    if cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        raise UserError("there are several GPUs: let one be seen (CUDA_VISIBLE_DEVICES=0), or take --cpu")
    return torch.device("cuda")


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given.

    On one thread of a CPU those that this process computed for, which other processes hardly change.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def alternating(sides: Mapping[Side, Callable[[], float]], repeats: int) -> dict[Side, list[float]]:
    """What each side gives, turn by turn in one process, so that a machine's slow minutes fall on all."""
    found: dict[Side, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        names = list(sides)
        for name in names if turn % 2 == 0 else reversed(names):
            found[name].append(sides[name]())
    return found


def medians(found: Mapping[Side, list[float]]) -> dict[Side, float]:
    """By side."""
    return {name: statistics.median(values) for name, values in found.items()}


def matmul_rate(device: torch.device, bits: int = 32, repeats: int = 7) -> float:
    """Floating-point operations a second of a square product, in fp32 or, below 32 bits, bf16: the median.

    On this process's threads, or on a GPU, of a size that fills it.
    """
    size, dtype = 8192 if device.type == "cuda" else 1024, torch.float32 if bits == 32 else torch.bfloat16
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(one, other)
    taken = []
    for _ in range(repeats):
        started = clock(device)
        torch.mm(one, other)
        taken.append(clock(device) - started)
    return 2 * size**3 / statistics.median(taken)


def linear_flops(
    model: torch.nn.Module, layout: Layout, source: float, target: float, frozen: int, trained: int
) -> float:
    """Floating-point operations of the linear layers for an example of `source` and `target` pieces.

    frozen, trained: for each weight that is so, and each token that meets it; 2 go forward.
    """
    total = 0.0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        tokens = target if layout.encoder_decoder else source + target
        if ".encoder." in name or (".EncDecAttention." in name and (".k" in name or ".v" in name)):
            tokens = source
        total += (
            (trained if module.weight.requires_grad else frozen) * module.in_features * module.out_features * tokens
        )
    return total


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine that a figure was measured on, and how busy it was: processes that ran or waited to, on average."""
    on_gpu = device.type == "cuda"
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "processor time" if torch.get_num_threads() == 1 and not on_gpu else "wall",
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "torch": torch.__version__,
    }
