"""Helpers to compare the speed of several tools (sides): taking turns, medians, and the speed of matrix products."""

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
    """Return the GPU if there is one and `cpu` is False, otherwise the CPU.

    Raises:
        UserError: There are several GPUs; Trainer would use all of them.
    """
    if cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        raise UserError("there are several GPUs: make only one visible (CUDA_VISIBLE_DEVICES=0), or use --cpu")
    return torch.device("cuda")


def clock(device: torch.device) -> float:
    """Wait until the device has finished its work, and return the present time in seconds.

    On a CPU with one thread, this is the CPU time of this process, which other processes hardly change.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def alternating(sides: Mapping[Side, Callable[[], float]], repeats: int) -> dict[Side, list[float]]:
    """Call each side `repeats` times, and return the results by side.

    The sides take turns, so that a slow minute of the machine affects all of them. Every second turn has the reverse
    order.
    """
    found: dict[Side, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        names = list(sides)
        for name in names if turn % 2 == 0 else reversed(names):
            found[name].append(sides[name]())
    return found


def medians(found: Mapping[Side, list[float]]) -> dict[Side, float]:
    """Return the median of each side's results."""
    return {name: statistics.median(values) for name, values in found.items()}


def matmul_rate(device: torch.device, bits: int = 32, repeats: int = 7) -> float:
    """Return the floating-point operations per second of a product of square matrices, as the median of `repeats`.

    The product is computed in fp32 if `bits` is 32, otherwise in bf16. On a CPU it uses this process's threads. On a
    GPU the matrices are large enough to keep the whole GPU busy.
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
    """Return the floating-point operations of the linear layers for one example.

    Args:
        model: the model.
        layout: the layout of examples, which is different for an encoder-decoder.
        source: tokens of the input.
        target: tokens of the target.
        frozen: operations per token for each frozen weight; the forward pass alone takes 2.
        trained: operations per token for each trained weight.
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
    """Describe the machine: processor, threads, GPU, and the load.

    The load is the number of processes that ran or waited to run, on average over the last minute.
    """
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
