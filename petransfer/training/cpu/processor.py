"""The name, the fast instructions and the available cores of this machine's processor. Imports no torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Instructions that determine the speed of matrix products at low precision.
FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512f", "avx2")


def available_cores() -> int:
    """Return the number of cores that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name, family and model numbers, and fast instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{key} {named[key]}" for key in ("cpu family", "model") if key in named]
    flags = named.get("flags", "").split()
    instructions = [flag for flag in FLAGS if flag in flags]
    return ", ".join([named.get("model name", platform.machine()), *numbers, *instructions])
