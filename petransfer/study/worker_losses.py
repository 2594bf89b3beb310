"""Count workers that were killed while executing runs, and fail the runs that caused it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from petransfer.errors import RunError
from petransfer.study.folders import RunFolder

# If this many workers are lost at the same step of a run, the run is assumed to be the cause and fails.
LOST = 3


def how_far(folder: RunFolder) -> str:
    """Return the name of a run's newest training state; a newer one means that the lost worker had made progress."""
    return max((state.name for state in (folder.path / "state").glob("step-*")), default="")


@dataclass
class Losses:
    """The number of workers that each run has lost.

    note: marks a run as failed after too many lost workers. idle: number of lost workers that held no run.
    """

    note: Callable[[RunFolder, Exception], None]
    count: dict[str, int] = field(default_factory=dict)
    at: dict[str, str] = field(default_factory=dict)
    idle: int = 0

    def add(self, folder: RunFolder, how: str) -> bool:
        """Count a lost worker of the run and return whether the run may be tried again. how: how the worker ended."""
        name, now = folder.path.name, how_far(folder)
        self.count[name] = self.count.get(name, 0) + 1 if self.at.get(name) == now else 1
        self.at[name] = now
        if self.count[name] < LOST:
            return True
        with folder.claim() as claimed:
            if claimed and not folder.done:
                self.note(folder, RunError(f"{LOST} workers were lost at the same step ({how}); is memory short?"))
        return False
