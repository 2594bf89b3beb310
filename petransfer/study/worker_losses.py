"""Workers that are killed while they carry runs out, and the runs that kill them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from petransfer.errors import RunError
from petransfer.study.folders import RunFolder

# Workers lost one after the other while a run got no further, after which the run is taken to be what ends them.
LOST = 3


def how_far(folder: RunFolder) -> str:
    """The newest state of a run: a worker that is lost after a newer one has got it further."""
    return max((state.name for state in (folder.path / "state").glob("step-*")), default="")


@dataclass
class Losses:
    """What runs have lost.

    note: how a run is marked as failed that has lost too many workers. idle: workers lost that held no run.
    """

    note: Callable[[RunFolder, Exception], None]
    count: dict[str, int] = field(default_factory=dict)
    at: dict[str, str] = field(default_factory=dict)
    idle: int = 0

    def add(self, folder: RunFolder, how: str) -> bool:
        """Counts a worker of the run; whether the run may be tried again. how: what became of the worker."""
        name, now = folder.path.name, how_far(folder)
        self.count[name] = self.count.get(name, 0) + 1 if self.at.get(name) == now else 1
        self.at[name] = now
        if self.count[name] < LOST:
            return True
        with folder.claim() as claimed:
            if claimed and not folder.done:
                self.note(folder, RunError(f"{LOST} workers were lost at the same step ({how}); is memory short?"))
        return False
