"""One run after the other, each shared by all processes of a launch: the first leads, claims and writes."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from petransfer.errors import Interrupted, RunError, UserError
from petransfer.models.library_output import silence_libraries
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.study.launched_processes import Place
from petransfer.study.local_executor import Job, Named, Outcome, note_failure, one_line, outcome_of, stop_on_signals

logger = logging.getLogger(__name__)

# While one process works alone the others wait for it, however long that takes; the launcher ends them if it dies.
FOREVER = timedelta(days=30)

# Seconds in which all processes of a run must have met an error for it to be the run's; else they have parted for good.
PATIENCE = 60.0

# As it calls many processes before it is asked for an engine; that FSDP is wanted does not show yet.
_PLAIN = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


def execute_together(
    cells: Sequence[Named], study: StudyFolder, job: Job, threads: int, tick: Callable[[], None], cpu: bool
) -> Outcome:
    """Carries out what is not done, every run by all processes. Returns in each of them; the leader's outcome counts.

    Raises:
        UserError: the processes are launched in a way that was never tried.
    """
    with stop_on_signals() as stopped:
        group = Group.join(cpu, stopped)
        work = _lead(cells, study, group) if group.place.leads else _follow(cells, study, group)
        with contextlib.closing(work):
            for cell, folder in work:
                _attempt(cell, folder, job, threads, group, tick)
        tick()
        group.leave()
        pending = [cell for cell in cells if not study.run(cell.run_id).done]
        return outcome_of(pending, study, interrupted=stopped() and bool(pending))


@dataclass
class Group:
    """The processes of a launch. `number` counts their runs, so that what is said of one is not taken for another."""

    place: Place
    stopped: Callable[[], bool]
    store: Any
    number: int = 0

    @classmethod
    def join(cls, cpu: bool, stopped: Callable[[], bool]) -> Group:
        """Waits for the other processes."""
        silence_libraries()
        state = PartialState(cpu=cpu, timeout=FOREVER)
        if state.distributed_type not in _PLAIN:
            kind = state.distributed_type.value
            raise UserError(f"Accelerate launched the processes as {kind}, which is untested; launch with --multi_gpu")
        store = PrefixStore("petransfer", _get_default_store())
        return cls(Place(state.process_index, state.num_processes), _or_orphaned(stopped), store)

    def share(self, value: Any) -> Any:
        """The leader's value, in every process; the others wait for it."""
        box = [value]
        try:
            distributed.broadcast_object_list(box, device=PartialState().device)
        except RuntimeError as error:
            raise RunError("one of the processes has ended; run the same command again to resume") from error
        return box[0]

    def meet(self, error: Exception | None) -> Exception | None:
        """Waits until all processes have ended the run; the error of one of them, or None.

        Where one has an error and the others do not come, because they wait for it in the middle of a step, the
        processes cannot find together again: all end.
        """
        self.number += 1
        self.store.set(self._key(self.place.index), "" if error is None else one_line(error))
        since = time.monotonic()
        while not self.store.check([self._key(index) for index in range(self.place.count)]):
            parted = (error is not None or self.stopped()) and time.monotonic() - since > PATIENCE
            if parted or (error is not None and self.stopped()):
                self._part(error)
            time.sleep(0.05)
        said = [self.store.get(self._key(index)).decode() for index in range(self.place.count)]
        if error is None and any(said):
            return RuntimeError(next(filter(None, said)))
        return error

    def leave(self) -> None:
        """Says goodbye, after which no process waits for another."""
        distributed.barrier()
        distributed.destroy_process_group()

    def _part(self, error: Exception | None) -> NoReturn:
        """Ends this process at once; what waits for it in a step ends with the launcher."""
        if error is not None and not self.stopped():  # told to stop, it is not the one whose error it was
            where = f"process {self.place.index + 1} of {self.place.count}"
            logger.error(f"error: {one_line(error)} ({where}); run the same command again to resume")
        os._exit(130 if self.stopped() else 1)

    def _key(self, index: int) -> str:
        return f"run-{self.number}/{index}"


def _lead(cells: Sequence[Named], study: StudyFolder, group: Group) -> Generator[tuple[Named, RunFolder], None, None]:
    """The runs that are not done and that this launch could claim, each made known to the others."""
    for position, cell in enumerate(cells):
        if group.stopped():
            break
        folder = study.run(cell.run_id)
        if folder.done:
            continue
        with folder.claim() as claimed:
            if claimed and not folder.done:
                (folder.path / "failed.json").unlink(missing_ok=True)
                group.share(position)
                yield cell, folder
    group.share(None)


def _follow(cells: Sequence[Named], study: StudyFolder, group: Group) -> Generator[tuple[Named, RunFolder], None, None]:
    while (position := group.share(None)) is not None:
        yield cells[position], study.run(cells[position].run_id)


def _attempt(cell: Named, folder: RunFolder, job: Job, threads: int, group: Group, tick: Callable[[], None]) -> None:
    error: Exception | None = None
    try:
        job(cell, folder, threads, lambda step, loss, seconds: tick(), group.stopped)
    except Interrupted:
        pass
    except Exception as raised:
        error = raised
    error = group.meet(error)
    if error is not None and group.place.leads:
        note_failure(folder, error)


def _or_orphaned(stopped: Callable[[], bool]) -> Callable[[], bool]:
    """Also to stop when the launcher is gone: nobody else would end this process."""
    parent = os.getppid()
    return lambda: stopped() or os.getppid() != parent
