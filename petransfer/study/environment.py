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

from petransfer.training.cpu.processor import cpu_model

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
