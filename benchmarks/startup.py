"""How long the command line takes to answer, beside importing torch, transformers and peft. Imports none of them.

Of small things, and of `plan` and `status` of ten thousand runs.
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
    """Seconds from start to end of each command in a process of its own, in turn: the median and the least.

    processor: the seconds that the process itself computed for, which other processes on the machine leave alone.
    seeds: of the study of many runs.
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
    """Seconds of a processor that processes took which this one began and which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
