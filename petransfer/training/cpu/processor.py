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
    fields = _cpuinfo()
    if not fields:
        return platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    instructions = [flag for flag in FLAGS if flag in flags]
    return ", ".join([fields.get("model name", platform.machine()), *_numbers(fields), *instructions])


def cpu_model() -> str:
    """Return the name of the processor, as in result.json. On Linux, the family and model numbers are added."""
    fields = _cpuinfo()
    numbers = ", ".join(_numbers(fields))
    return f"{fields.get('model name', platform.processor())} ({numbers})" if numbers else platform.processor()


def _cpuinfo() -> dict[str, str]:
    """Return what /proc/cpuinfo says about the first core. Empty on systems without this file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _numbers(fields: dict[str, str]) -> list[str]:
    return [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
