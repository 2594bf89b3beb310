"""How the runs of a study are executed on this machine. No setting here is part of a run's id. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from petransfer.training.execution import Execution


@dataclass(frozen=True)
class Settings:
    """How one run is executed.

    Attributes:
        execution: Micro-batch, threads, gradient checkpointing, and how often training states and metrics are written.
        data_dir: A folder with a benchmark's original files, as its authors published them.
        cpu: Use the CPU even if there is a GPU.
        force: Ignore failed memory and quantisation checks.
        by_generation: Score the test set by generating every text instead of by one forward pass per example.
        dev_only: Do not score the test set and save no weights, as in a learning-rate sweep.
        log_with: Names of the experiment trackers to which each run is logged, such as `tensorboard`.
    """

    execution: Execution = field(default_factory=Execution)
    data_dir: Path | None = None
    cpu: bool = False
    force: bool = False
    by_generation: bool = False
    dev_only: bool = False
    log_with: tuple[str, ...] = ()

    @property
    def scored_parts(self) -> tuple[str, ...]:
        """The parts of the data that a trained model is scored on."""
        return ("dev",) if self.dev_only else ("dev", "test")
