"""The function that an executor calls for each run or stack (runs trained together) of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from petransfer.errors import refuse_moved
from petransfer.study.folders import MARK, RunFolder
from petransfer.study.grid import Cell
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.study.stacked_run import run_stack


@dataclass(frozen=True)
class FineTune:
    """Execute one run of a study with the executor's number of CPU threads.

    Attributes:
        settings: The settings of all runs.
        marked: Whether the study's folder had the file `MARK` at the start. If True, a run does not start when this
            file is missing, because the folder was then moved or removed.
    """

    settings: Settings
    marked: bool = False

    def __call__(
        self,
        cell: Cell,
        folder: RunFolder,
        threads: int,
        progress: Callable[[int, float, float], None],
        should_stop: Callable[[], bool],
    ) -> object:
        self._refuse_moved(folder)
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
        self._refuse_moved(folders[0])
        specs = [cell.spec for cell in cells]
        run_stack(specs, folders, self._on(threads), progress, should_stop, failed)

    def _refuse_moved(self, folder: RunFolder) -> None:
        if self.marked:
            refuse_moved(folder.path.parents[1], MARK)

    def _on(self, threads: int) -> Settings:
        return replace(self.settings, execution=replace(self.settings.execution, threads=threads))
