"""The list of the stages, the most important first, and the command that runs one of them."""

from __future__ import annotations

import argparse
import importlib
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.records import Records, machine


@dataclass(frozen=True)
class Stage:
    """A group of measurements that run in one process.

    module: the module whose `run(records, task)` does the work. seconds: the time limit. about: a description.
    """

    letter: str
    module: str
    seconds: int
    about: str


STAGES = {
    stage.letter: stage
    for stage in (
        Stage("a", "benchmarks.gpu.correctness", 120, "tests that compare GPU results with CPU results"),
        Stage("b", "benchmarks.gpu.memory_caps", 130, "QLoRA of t5-3b and t5-11b under caps of the card's memory"),
        Stage("c", "benchmarks.gpu.throughput", 110, "training throughput, each fast path, beside Trainer"),
        Stage("d", "benchmarks.gpu.scoring", 50, "exact match in one forward pass beside generate"),
        Stage("e", "benchmarks.gpu.pretraining", 240, "pretraining of several seeds in one process"),
    )
}


@dataclass(frozen=True)
class Task:
    """The arguments of a stage.

    Attributes:
        out: The folder for results, in which a stage can write other files than its JSON file.
        rehearse: Whether to use the CPU and tiny sizes, only to check that the code runs.
        ends_at: The value of `time.monotonic()` at which the stage is stopped.
    """

    out: Path
    rehearse: bool
    ends_at: float

    @property
    def seconds_left(self) -> float:
        """Seconds until the stage is stopped."""
        return self.ends_at - time.monotonic()


def run_here(stage: Stage, task: Task) -> None:
    """Run a stage in this process, and write its records to `<out>/<letter>.json`."""
    records = Records(task.out / f"{stage.letter}.json", machine() | {"stage": stage.about, "rehearsal": task.rehearse})
    importlib.import_module(stage.module).run(records, task)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run one stage in this process.")
    parser.add_argument("letter", choices=list(STAGES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    _asked = _parsed()
    run_here(STAGES[_asked.letter], Task(_asked.out, _asked.rehearse, time.monotonic() + _asked.seconds))
