"""The software and hardware of a run, for result.json."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Return the software and hardware of a run: package versions, device, CPU and threads.

    A run on a CPU is exactly repeatable only with an equal CPU model and an equal number of threads.
    """
    packages = ("petransfer", "torch", "transformers", "peft", "bitsandbytes", "accelerate")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "packages": {name: version for name in packages if (version := _version(name))},
        **({"commit": commit} if (commit := git_commit(ROOT)) else {}),
        "python": platform.python_version(),
        "device": f"{device.type} ({card})",
        "threads": threads or torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }


def cpu_model() -> str:
    """Return the name of the CPU. On Linux, the family and model numbers are added."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    numbers = [f"{key} {named[key]}" for key in ("cpu family", "model") if key in named]
    return (
        f"{named.get('model name', platform.processor())} ({', '.join(numbers)})" if numbers else platform.processor()
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@functools.cache
def git_commit(root: Path) -> str | None:
    """Return the commit of a git checkout. `-dirty` marks changed files. None without git."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
