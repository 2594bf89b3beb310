"""The function that an executor calls for each run or stack (runs trained together) of a study."""

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
    """Execute one run of a study with the executor's number of CPU threads."""

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
        """Execute several runs as one stack (see `run_stack`)."""
        specs = [cell.spec for cell in cells]
        run_stack(specs, folders, self._on(threads), progress, should_stop, failed)

    def _on(self, threads: int) -> Settings:
        return replace(self.settings, execution=replace(self.settings.execution, threads=threads))
