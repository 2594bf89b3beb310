"""A job without training, for tests of executors. Its cell determines whether it ends, fails, waits or is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.errors import Interrupted, UserError
from petransfer.study.folders import RunFolder


@dataclass(frozen=True)
class Named:
    """A cell. `does` is the behaviour of its job."""

    run_id: str
    does: str = "end"
    spec: Any = None


@dataclass(frozen=True)
class Job:
    """A job that adds a line to the file `marks/<run id>` each time a run starts."""

    marks: Path

    def __call__(self, cell: Named, folder: RunFolder, threads: int, progress: object, should_stop: Any) -> None:
        begun = self._mark(cell)
        if cell.does == "mistake":
            raise UserError("the user's")
        if cell.does == "dies" or (cell.does == "dies once" and begun == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.does == "gets on and dies" and begun < 4:
            (folder.path / "state" / f"step-{begun:09d}").mkdir(parents=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.does == "waits":
            while not should_stop():
                time.sleep(0.05)
            raise Interrupted
        folder.finish({"run_id": cell.run_id})

    def stacked(
        self,
        cells: Sequence[Named],
        folders: Sequence[RunFolder],
        threads: int,
        progress: object,
        should_stop: object,
        failed: Callable[[RunFolder, Exception], None],
    ) -> None:
        begun = [self._mark(cell, f"of {len(cells)}") for cell in cells]
        if any(cell.does == "dies once" and times == 1 for cell, times in zip(cells, begun, strict=True)):
            os.kill(os.getpid(), signal.SIGKILL)
        for cell, folder in zip(cells, folders, strict=True):
            if cell.does == "mistake":
                failed(folder, UserError("the user's"))
            else:
                folder.finish({"run_id": cell.run_id})

    def _mark(self, cell: Named, word: str = "") -> int:
        with (self.marks / cell.run_id).open("a") as file:
            file.write(f"{word or Path.cwd()}\n")
        return len((self.marks / cell.run_id).read_text().splitlines())
