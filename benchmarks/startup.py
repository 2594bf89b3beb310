"""Measure how long commands of the command line take, compared with importing torch, transformers and peft.

It measures small commands, and `plan` and `status` of a study of ten thousand runs. This module itself imports none of
the three libraries.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.thousands import OF_A_SEED, write_recipe, write_study
from petransfer.training.cpu.processor import processor

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "petransfer --help": ("-m", "petransfer", "--help"),
    "petransfer plan": ("-m", "petransfer", "plan", "--recipe", "lora-scan"),
    "import torch, transformers, peft": ("-c", "import torch, transformers, peft"),
}


def rows(repeats: int, seeds: int = 2500) -> list[dict[str, Any]]:
    """Measure the seconds that each command takes in a new process. The commands take turns.

    Args:
        repeats: Measurements of each command.
        seeds: Number of seeds of the study with many runs; it has `OF_A_SEED` runs per seed.

    Returns:
        One row per command: `median` and `least` wall time, and `processor`, the median CPU time of the process, which
        other processes on the machine do not change.
    """
    with tempfile.TemporaryDirectory() as folder:
        commands = COMMANDS | _of_many(Path(folder), seeds)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, arguments in commands.items():
                taken[name].append(_once(arguments, folder))
    load = round(os.getloadavg()[0], 1)
    return [
        {
            "command": name,
            "repeats": repeats,
            "median": round(statistics.median(wall for wall, _ in values), 3),
            "least": round(min(wall for wall, _ in values), 3),
            "processor": round(statistics.median(own for _, own in values), 3),
            "processor_name": processor(),
            "cores": os.cpu_count(),
            "load": load,
        }
        for name, values in taken.items()
    ]


def _of_many(folder: Path, seeds: int) -> dict[str, tuple[str, ...]]:
    recipe, study = folder / "thousands.yaml", folder / "thousands"
    write_recipe(recipe, seeds)
    write_study(recipe, study)
    runs = f"{OF_A_SEED * seeds:,} runs"
    return {
        f"petransfer plan, {runs}": ("-m", "petransfer", "plan", "--recipe", str(recipe), "--out", str(folder / "new")),
        f"petransfer status, {runs}": ("-m", "petransfer", "status", str(study)),
    }


def _once(arguments: tuple[str, ...], folder: str) -> tuple[float, float]:
    before, started = of_children(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, of_children() - before


def of_children() -> float:
    """Return the CPU seconds of all ended child processes of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
