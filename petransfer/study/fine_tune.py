"""The job that an executor calls for each run of a study, or for a stack (several runs that are trained together)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from petransfer.study.folders import RunFolder
from petransfer.study.grid import Cell
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.study.stacked_run import run_stack


@dataclass(frozen=True)
class FineTune:
    """A callable that executes the run of one cell, with the number of CPU threads that the executor assigns."""

    settings: Settings

    def __call__(
        self,
        cell: Cell,
        folder: RunFolder,
        threads: int,
        progress: Callable[[int, float, float], None],
        should_stop: Callable[[], bool],
    ) -> object:
        return run_one(cell.spec, folder, self._on(threads), progress, should_stop)

    def stacked(
        self,
        cells: Sequence[Cell],
        folders: Sequence[RunFolder],
        threads: int,
        progress: Callable[[int, float, float], None],
        should_stop: Callable[[], bool],
        failed: Callable[[RunFolder, Exception], None],
    ) -> None:
        """Execute the runs of several cells as one stack; see `run_stack`."""
        specs = [cell.spec for cell in cells]
        run_stack(specs, folders, self._on(threads), progress, should_stop, failed)

    def _on(self, threads: int) -> Settings:
        return replace(self.settings, execution=replace(self.settings.execution, threads=threads))
