"""How long the command line takes to answer, beside importing torch, transformers and peft. Imports none of them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "petransfer --help": ("-m", "petransfer", "--help"),
    "petransfer plan": ("-m", "petransfer", "plan", "--recipe", "lora-scan"),
    "import torch, transformers, peft": ("-c", "import torch, transformers, peft"),
}


def rows(repeats: int) -> list[dict[str, Any]]:
    """Seconds from start to end of each command in a process of its own, in turn: the median and the least.

    processor: the seconds that the process itself computed for, which other processes on the machine leave alone.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for name, arguments in COMMANDS.items():
                taken[name].append(_once(arguments, folder))
    load = round(os.getloadavg()[0], 1)
    return [
        {
            "command": name,
            "repeats": repeats,
            "median": round(statistics.median(wall for wall, _ in values), 3),
            "least": round(min(wall for wall, _ in values), 3),
            "processor": round(statistics.median(own for _, own in values), 3),
            "cores": os.cpu_count(),
            "load": load,
        }
        for name, values in taken.items()
    ]


def _once(arguments: tuple[str, ...], folder: str) -> tuple[float, float]:
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used
