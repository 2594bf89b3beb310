"""Settings for executing runs. No setting here changes a run's id. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from petransfer.python_arguments import checked_bool
from petransfer.training.execution import Execution


@dataclass(frozen=True)
class Settings:
    """Settings for executing a run.

    Attributes:
        execution: Micro-batch, threads, gradient checkpointing, and intervals for saving and logging.
        data_dir: A folder with a benchmark's original files.
        cpu: Use the CPU even if there is a GPU.
        force: Ignore failed memory and quantisation checks.
        by_generation: Score the test set by generated texts instead of one forward pass.
        dev_only: Do not score the test set and save no weights.
        log_with: Names of experiment trackers, such as `tensorboard`.

    Raises:
        UserError: `cpu`, `force`, `by_generation` or `dev_only` is neither True nor False.
    """

    execution: Execution = field(default_factory=Execution)
    data_dir: Path | None = None
    cpu: bool = False
    force: bool = False
    by_generation: bool = False
    dev_only: bool = False
    log_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cpu", "force", "by_generation", "dev_only"):
            object.__setattr__(self, name, checked_bool(getattr(self, name), name))

    @property
    def scored_parts(self) -> tuple[str, ...]:
        """The evaluated parts of the data."""
        return ("dev",) if self.dev_only else ("dev", "test")
