"""Execute the runs of a study or a pretraining on this machine, in one or several processes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from petransfer.errors import Interrupted
from petransfer.models.quiet_libraries import silence_libraries
from petransfer.models.thread_turns import torch_state_lock
from petransfer.study.folders import HasRunId, RunFolder, StudyFolder
from petransfer.study.stack_groups import resumable_groups
from petransfer.study.worker_losses import LOST, may_be_tried, note_failure, note_lost_worker
from petransfer.training.cpu.processor import available_cores

# Seconds that a worker has for saving its training state after its parent process has ended.
ORPHAN_PATIENCE = 20.0


class Job(Protocol):
    """A picklable function that executes or resumes one run.

    `progress` takes the step, the loss and the training time in seconds. A stop request raises Interrupted.
    """

    def __call__(
        self,
        cell: Any,
        folder: RunFolder,
        threads: int,
        progress: Callable[[int, float, float], None],
        should_stop: Callable[[], bool],
    ) -> object: ...


# No lock is used, because a process that is killed while it holds a lock would block all other processes.
class Flag(Protocol):
    """A boolean that processes share without a lock."""

    value: bool


@dataclass(frozen=True)
class Outcome:
    """The result of executing the runs of a study.

    Attributes:
        interrupted: Whether a stop was requested before all runs were finished.
        failures: Errors of unfinished runs, by run id.
        mistakes: Errors that the user can correct, one line each.
        elsewhere: Number of unfinished runs that other processes have claimed.
    """

    interrupted: bool
    failures: dict[str, str]
    mistakes: tuple[str, ...]
    elsewhere: int = 0


def execute(
    cells: Sequence[HasRunId],
    study: StudyFolder,
    job: Job,
    workers: int,
    threads: int,
    tick: Callable[[], None],
    group: Callable[[Sequence[Any]], list[list[Any]]] | None = None,
) -> Outcome:
    """Execute the unfinished runs on this machine. A failed run does not stop the other runs.

    Args:
        workers: Largest number of worker processes. With 1, this process executes the runs.
        threads: CPU threads per worker. 0: chosen automatically.
        tick: Function that displays progress. It is called often.
        group: Function that divides the runs into stacks (runs that are trained together). None: no stacks.
    """
    pending = study.unfinished(cells)
    forget_failures(pending, study)
    stacks = group(pending) if group else [[cell] for cell in pending]
    workers = max(1, min(workers, len(stacks)))
    with stop_on_signals() as stopped:
        if pending and workers == 1:
            _work(stacks, study.path, job, threads, stopped, tick)
        elif pending:
            _spawn(stacks, study.path, job, workers, threads, stopped, tick)
        tick()
        interrupted = stopped() and bool(study.unfinished(pending))
    return outcome_of(pending, study, interrupted)


def forget_failures(pending: Sequence[HasRunId], study: StudyFolder) -> None:
    """Delete the records of errors and killed workers of unfinished runs."""
    for cell in pending:
        folder = study.run(cell.run_id)
        (folder.path / "failed.json").unlink(missing_ok=True)
        folder.forget_losses()


def outcome_of(pending: Sequence[HasRunId], study: StudyFolder, interrupted: bool) -> Outcome:
    """Return the outcome of executing the runs in `pending`."""
    left = [study.run(cell.run_id) for cell in pending]
    open_runs = [folder for folder in left if folder.status() not in ("done", "running")]
    failures = {folder.path.name: folder.failure() for folder in open_runs}
    if not interrupted:  # a worker that was killed has written no error
        failures = {
            run_id: reason or f"not finished ({study.run(run_id).status()}); run the same command again to resume"
            for run_id, reason in failures.items()
        }
    mistakes = dict.fromkeys(failures[folder.path.name] for folder in open_runs if _is_mistake(folder))
    reasons = {run_id: reason for run_id, reason in failures.items() if reason}
    elsewhere = sum(folder.status() == "running" for folder in left)
    return Outcome(interrupted, reasons, tuple(mistake for mistake in mistakes if mistake), elsewhere)


def _spawn(
    stacks: Sequence[Sequence[HasRunId]],
    path: Path,
    job: Job,
    workers: int,
    threads: int,
    stopped: Callable[[], bool],
    tick: Callable[[], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    stop: Flag = context.RawValue(ctypes.c_bool, False)
    threads = threads or max(1, available_cores() // workers)
    # OpenMP reads its number of threads only when a process starts. More threads than free cores are many times slower.
    with _environment({"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}):

        def begin() -> BaseProcess:
            process = context.Process(target=_worker, args=(list(stacks), path, job, threads, stop))
            with _main_module_hidden():
                process.start()
            return process

        folders = [StudyFolder(path).run(cell.run_id) for stack in stacks for cell in stack]
        _keep(workers, begin, folders, stop, stopped, tick)


def _keep(
    workers: int,
    begin: Callable[[], BaseProcess],
    folders: Sequence[RunFolder],
    stop: Flag,
    stopped: Callable[[], bool],
    tick: Callable[[], None],
) -> None:
    """Start the workers and wait until all have ended. Killed workers are replaced."""
    processes = [begin() for _ in range(workers)]
    seen: set[int | None] = set()
    idle = 0  # number of killed workers that had claimed no run
    while True:
        if stopped():
            stop.value = True
        for at, process in enumerate(processes):
            killed = (process.exitcode or 0) < 0 and process.pid not in seen
            if killed and not stop.value:
                seen.add(process.pid)
                idle += not _note_loss(process, folders)
                # no more workers are started after `LOST` of them were killed before they claimed a run
                if idle < LOST:
                    processes[at] = begin()
        if not any(process.is_alive() for process in processes):
            break
        tick()
        time.sleep(0.2)
    for process in processes:
        process.join()


def _note_loss(process: BaseProcess, folders: Sequence[RunFolder]) -> bool:
    """Record a killed worker in the folders of its runs. Return whether there were such runs."""
    how = signal.Signals(-(process.exitcode or 0)).name
    held = [folder for folder in folders if folder.claimed_by(process.pid or 0) and not folder.done]
    for folder in held:
        note_lost_worker(folder, how)
    return bool(held)


def _worker(stacks: Sequence[Sequence[HasRunId]], path: Path, job: Job, threads: int, stop: Flag) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which then stops the workers
    orphaned = threading.Event()
    threading.Thread(target=_wait_for_parent, args=(orphaned,), daemon=True).start()
    _work(stacks, path, job, threads, lambda: stop.value or orphaned.is_set(), lambda: None)


def _wait_for_parent(orphaned: threading.Event) -> None:
    """Set `orphaned` when the parent process ends. After `ORPHAN_PATIENCE` seconds, end this process."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    orphaned.set()
    time.sleep(ORPHAN_PATIENCE)
    os._exit(1)  # training states are written atomically, so a run resumes from the last one


def _work(
    stacks: Sequence[Sequence[HasRunId]],
    path: Path,
    job: Job,
    threads: int,
    stopped: Callable[[], bool],
    tick: Callable[[], None],
) -> None:
    """Execute the stacks one after another. Skip runs that other processes have claimed."""
    study = StudyFolder(path)
    for stack in stacks:
        if stopped():
            return
        attempt_together(stack, study, job, threads, stopped, tick)


def attempt_together(
    stack: Sequence[HasRunId],
    study: StudyFolder,
    job: Job,
    threads: int,
    stopped: Callable[[], bool],
    tick: Callable[[], None],
) -> list[str]:
    """Claim and execute the runs of a stack. Return the ids of runs claimed by other processes."""
    held: list[str] = []
    with torch_state_lock(), contextlib.ExitStack() as claims:
        cells = [cell for cell in stack if _claimed(study.run(cell.run_id), claims, held)]
        if len(stack) > 1 and cells:
            attempt_stacks(cells, study, job, threads, stopped, tick)
        elif cells:
            attempt(cells[0], study.run(cells[0].run_id), job, threads, stopped, tick)
    return held


def _claimed(folder: RunFolder, claims: contextlib.ExitStack, held: list[str]) -> bool:
    if folder.failure():  # the run failed in another worker, or too many workers were killed; it is not tried again
        return False
    if not claims.enter_context(folder.claim()):
        held.append(folder.path.name)
        return False
    # while this process waited for the claim, the run may have finished or failed, or its worker may have been killed
    return not folder.done and not folder.failure() and may_be_tried(folder)


def attempt_stacks(
    cells: Sequence[Any],
    study: StudyFolder,
    job: Any,
    threads: int,
    stopped: Callable[[], bool],
    tick: Callable[[], None],
) -> None:
    """Execute claimed runs together. Runs at different training steps form separate stacks.

    An error of one run is written to the run's folder. An error of a stack is written to the folders of all unfinished
    runs.
    """
    silence_libraries()
    for part in resumable_groups(cells, study):
        if stopped():
            return
        folders = [study.run(cell.run_id) for cell in part]
        if len(part) == 1:
            attempt(part[0], folders[0], job, threads, stopped, tick)
            continue
        try:
            job.stacked(part, folders, threads, lambda step, loss, seconds: tick(), stopped, note_failure)
        except Interrupted:
            return
        except Exception as error:
            for folder in folders:
                if not folder.done and not folder.failure():
                    note_failure(folder, error)


def attempt(
    cell: HasRunId, folder: RunFolder, job: Job, threads: int, stopped: Callable[[], bool], tick: Callable[[], None]
) -> None:
    """Execute one claimed run. An error is written to the run's folder."""
    silence_libraries()
    (folder.path / "failed.json").unlink(missing_ok=True)
    try:
        job(cell, folder, threads, lambda step, loss, seconds: tick(), stopped)
    except Interrupted:
        return
    except Exception as error:  # an error of one run must not stop the others
        note_failure(folder, error)


def _is_mistake(folder: RunFolder) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads((folder.path / "failed.json").read_text())["kind"] == "mistake")
    return False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C or SIGTERM requested a stop.

    A second signal raises KeyboardInterrupt at once. Outside the main thread, the function always returns False.
    """
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # this is not the main thread, so the caller must handle signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Hide the user's script from multiprocessing."""
    main = sys.modules["__main__"]
    # Otherwise each worker would import the script. A script without `if __name__ == "__main__":` would then start the
    # study again in every worker, and fail.
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
