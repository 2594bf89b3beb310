"""Execute runs, each with all processes that a launcher started together.

Process 0 leads: this process claims the runs and writes the files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from petransfer.errors import Interrupted, RunError, UserError, reason_of
from petransfer.models.quiet_libraries import silence_libraries
from petransfer.study.folders import HasRunId, RunFolder, StudyFolder
from petransfer.study.launched_processes import LaunchedProcess, is_orphaned, launched_process
from petransfer.study.local_executor import Job, Outcome, outcome_of, stop_on_signals
from petransfer.study.slow_work import calling_if_slow
from petransfer.study.worker_losses import note_failure

logger = logging.getLogger(__name__)

# The longest wait for another process. It is practically unlimited, because one process can work alone for a long time.
# If a process dies, the launcher ends the processes that wait for it.
FOREVER = timedelta(days=30)

# Seconds after which a process that waits for the start of the others logs a warning.
LATE = 20.0

# Seconds between two checks whether the launcher still runs, while a process waits for the start of the others.
LOOK = 1.0

# Seconds that a process with an error waits for the others to end the run too. If all of them do, only this run fails.
# Otherwise some of them are in the middle of a step, which cannot be completed, and all processes must end.
PATIENCE = 60.0

# The kinds of launch that are supported, as `PartialState` names them. A launch with FSDP has one of these names too.
_PLAIN = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


def execute_together(
    cells: Sequence[HasRunId], study: StudyFolder, job: Job, threads: int, tick: Callable[[], None], cpu: bool
) -> Outcome:
    """Execute the unfinished runs, each with all processes. Every process must call this function.

    The leading process returns the complete outcome.

    Raises:
        UserError: Accelerate launched the processes in an untested way.
    """
    with stop_on_signals() as stopped:
        group = ProcessGroup.join(cpu, stopped)
        work = _lead(cells, study, group) if group.place.leads else _follow(cells, study, group)
        with contextlib.closing(work):
            for cell, folder in work:
                _attempt(cell, folder, job, threads, group, tick)
        tick()
        group.leave()
        pending = study.unfinished(cells)
        return outcome_of(pending, study, interrupted=stopped() and bool(pending))


@dataclass
class ProcessGroup:
    """The processes that a launcher started together.

    Attributes:
        stopped: Returns whether a stop was requested.
        store: The messages between processes.
        number: The number of runs so far, a part of a message's key.
    """

    place: LaunchedProcess
    stopped: Callable[[], bool]
    store: Any
    number: int = 0

    @classmethod
    def join(cls, cpu: bool, stopped: Callable[[], bool]) -> ProcessGroup:
        """Connect this process to the other processes, and wait for all of them."""
        silence_libraries()
        _use_first_thread_count()
        place = launched_process()
        with _reporting_the_wait(place), _ending_with_the_launcher(place), default_signal_handlers():
            state = PartialState(cpu=cpu, timeout=FOREVER)
        if state.distributed_type not in _PLAIN:
            kind = state.distributed_type.value
            raise UserError(f"Accelerate launched the processes as {kind}, which is untested; launch with --multi_gpu")
        store = PrefixStore("petransfer", _get_default_store())
        return cls(LaunchedProcess(state.process_index, state.num_processes), _or_orphaned(stopped), store)

    def share(self, value: Any) -> Any:
        """Send the leading process's value to all processes and return the value."""
        box = [value]
        try:
            distributed.broadcast_object_list(box, device=PartialState().device)
        except RuntimeError as error:
            raise RunError("one of the processes has ended; run the same command again to resume") from error
        return box[0]

    def meet(self, error: Exception | None) -> Exception | None:
        """Wait until all processes have ended the run, and return an error of any process.

        `error` is the error of this process and has precedence. None: no error.
        """
        self.number += 1
        self.store.set(self._key(self.place.index), "" if error is None else reason_of(error))
        since = time.monotonic()
        while not self.store.check([self._key(index) for index in range(self.place.count)]):
            # Processes that do not end the run within `PATIENCE` seconds wait for this process in a step that can never
            # be completed. This process therefore ends, and the launcher then ends the others.
            gives_up = (error is not None or self.stopped()) and time.monotonic() - since > PATIENCE
            if gives_up or (error is not None and self.stopped()):
                self._exit_at_once(error)
            time.sleep(0.05)
        errors = [self.store.get(self._key(index)).decode() for index in range(self.place.count)]
        if error is None and any(errors):
            return RuntimeError(next(filter(None, errors)))
        return error

    def leave(self) -> None:
        """Wait for all other processes, then leave the group."""
        distributed.barrier()
        distributed.destroy_process_group()

    def _exit_at_once(self, error: Exception | None) -> NoReturn:
        """End this process at once. The launcher then ends the other processes."""
        if error is not None and not self.stopped():  # after a stop request, the stop itself causes the error
            where = f"process {self.place.index + 1} of {self.place.count}"
            logger.error(f"error: {reason_of(error)} ({where}); run the same command again to resume")
        os._exit(130 if self.stopped() else 1)

    def _key(self, index: int) -> str:
        return f"run-{self.number}/{index}"


@contextlib.contextmanager
def _reporting_the_wait(place: LaunchedProcess) -> Generator[None]:
    """Log that this process waits for the others. Log a warning with advice if it still waits after `LATE` seconds."""
    if not place.shared:
        yield
        return
    logger.info(f"process {place.index + 1} of {place.count} waits for the other processes of the launch")
    with calling_if_slow(LATE, lambda: _warn_of_the_wait(place)):
        yield


@contextlib.contextmanager
def _ending_with_the_launcher(place: LaunchedProcess) -> Generator[None]:
    """End this process if its launcher ends while the process waits for the others, because they will never arrive."""
    if not place.shared:
        yield
        return
    joined = threading.Event()
    threading.Thread(target=_end_if_orphaned, args=[place, joined], daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def _end_if_orphaned(place: LaunchedProcess, joined: threading.Event) -> None:
    while not joined.wait(LOOK):
        if is_orphaned():
            where = f"process {place.index + 1} of {place.count}"
            logger.error(f"error: the launcher has ended ({where}); run the same command again to resume")
            os._exit(1)  # the wait itself is in a library and cannot be interrupted


def _warn_of_the_wait(place: LaunchedProcess) -> None:
    logger.warning(
        f"process {place.index + 1} has waited {LATE:g} s for the other processes. By the environment, a launcher "
        f"started {place.count} processes (RANK={place.index} and WORLD_SIZE={place.count}, or variables of MPI). To "
        "train with one process, stop this one with Ctrl-C, unset these variables, and start again"
    )


@contextlib.contextmanager
def default_signal_handlers() -> Generator[None]:
    """Let SIGINT and SIGTERM end this process at once, during the `with` block."""
    # A handler in Python would only run when the wait for the other processes is over.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python


def _use_first_thread_count() -> None:
    """Replace a list in OMP_NUM_THREADS, such as 2,1 (one number per nesting level), by its first number."""
    # Accelerate reads the variable as one whole number
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if "," in threads:
        os.environ["OMP_NUM_THREADS"] = threads.split(",")[0].strip()


def _lead(
    cells: Sequence[HasRunId], study: StudyFolder, group: ProcessGroup
) -> Generator[tuple[HasRunId, RunFolder], None, None]:
    """Claim, announce and yield the unfinished runs one after another."""
    for cell in cells:
        if group.stopped():
            break
        folder = study.run(cell.run_id)
        if folder.done:
            continue
        with folder.claim() as claimed:
            if claimed and not folder.done:
                (folder.path / "failed.json").unlink(missing_ok=True)
                group.share(cell.run_id)
                yield cell, folder
    group.share(None)


def _follow(
    cells: Sequence[HasRunId], study: StudyFolder, group: ProcessGroup
) -> Generator[tuple[HasRunId, RunFolder], None, None]:
    # Runs are found by their ids, because this process may have a shorter list of runs, for example without a damaged
    # run.
    by_id = {cell.run_id: cell for cell in cells}
    while (run_id := group.share(None)) is not None:
        if run_id not in by_id:
            raise RunError(f"the processes do not see the same runs: {run_id} is missing here; run the command again")
        yield by_id[run_id], study.run(run_id)


def _attempt(
    cell: HasRunId, folder: RunFolder, job: Job, threads: int, group: ProcessGroup, tick: Callable[[], None]
) -> None:
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
    """Return a function that returns True after a stop request or after the end of the launcher."""
    # without the second condition, the process would continue after the launcher has ended
    return lambda: stopped() or is_orphaned()
