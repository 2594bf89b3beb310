"""Execute a study on a Ray cluster. Each run or stack is a Ray task."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petransfer.errors import UserError, reason_of
from petransfer.study.folders import HasRunId, RunFolder, StudyFolder
from petransfer.study.local_executor import (
    Job,
    Outcome,
    attempt_together,
    forget_failures,
    outcome_of,
    stop_on_signals,
)
from petransfer.study.resource_demands import Resources, stack_resources
from petransfer.study.worker_losses import note_failure, note_lost_worker

# A worker that Ray has lost may still hold the claims of its runs for a while. Such runs are tried again for HELD
# seconds, with AGAIN seconds between two attempts.
HELD, AGAIN = 90.0, 2.0

# At least this many tasks are submitted at once, if there are so many, so that an autoscaling cluster sees the demand.
QUEUE = 100


def connect(address: str | None) -> Any:
    """Return the module `ray`, connected to a cluster.

    Args:
        address: The address of the cluster. `auto`: the cluster of this machine. None: a new cluster on this machine.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise UserError(
            "--executor ray needs Ray, which is not installed; run `pip install 'petransfer[ray]'`"
        ) from None
    if ray.is_initialized():
        return ray
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address or "local", **quietly)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = reason_of(error, 200)
        raise UserError(
            f"no Ray cluster at --address {address}: {reason}; start one with `ray start --head` or leave --address out"
        ) from None
    return ray


def smallest_card(ray: Any) -> int | None:
    """Return the memory of the cluster's smallest GPU in bytes. None if no node has a GPU."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    look = ray.remote(num_cpus=0, num_gpus=0.01)(_card_bytes)
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    asked = [look.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote() for node in nodes]
    found = [size for size in ray.get(asked) if size]
    return min(found) if found else None


def execute_on_ray(
    cells: Sequence[HasRunId],
    study: StudyFolder,
    job: Job,
    demands: Mapping[str, Resources],
    most: int,
    threads: int,
    tick: Callable[[], None],
    ray: Any,
    group: Callable[[Sequence[Any]], list[list[Any]]] | None = None,
) -> Outcome:
    """Execute the unfinished runs on a Ray cluster.

    Args:
        demands: The resources that each run requests, by run id.
        most: The largest number of tasks at once. 0: as many as fit on the cluster.
        threads: CPU threads of each task.
        tick: A function that displays progress. It is called often.
        ray: The connected module `ray`.
        group: A function that divides the runs into stacks (one task each). None: no stacks.

    Raises:
        UserError: No node has `threads` cores.
    """
    most_cores = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if threads > most_cores:
        raise UserError(f"--threads {threads}: no node of the cluster has more than {most_cores:.0f} cores")
    pending = study.unfinished(cells)
    forget_failures(pending, study)
    stacks = group(pending) if group else [[cell] for cell in pending]
    with stop_on_signals() as stopped, _stop_file(study) as stop:
        driver = _Driver(ray, study, job, demands, threads, stop)
        driver.run(stacks, most, tick, stopped)
        tick()
        interrupted = stopped() and bool(study.unfinished(pending))
    return outcome_of(pending, study, interrupted)


@dataclass(eq=False)
class _Try:
    """One attempt to execute the runs of a task. Times are in seconds of `time.monotonic`.

    refused: first time at which another process had locked one of the runs. None: never.
    not_before: earliest time for submitting the task.
    killed: number of workers that were killed in earlier attempts to execute these runs.
    """

    cells: Sequence[HasRunId]
    refused: float | None = None
    not_before: float = 0.0
    killed: int = 0


@dataclass
class _Driver:
    ray: Any
    study: StudyFolder
    job: Job
    demands: Mapping[str, Resources]
    threads: int
    stop: Path
    under_way: dict[Any, _Try] = field(default_factory=dict)

    def run(
        self, stacks: Sequence[Sequence[HasRunId]], most: int, tick: Callable[[], None], stopped: Callable[[], bool]
    ) -> None:
        """Submit the stacks as tasks and wait for all tasks. A stop request ends submission."""
        waiting = [_Try(cells) for cells in stacks]
        waiting.reverse()
        while waiting or self.under_way:
            if stopped():
                waiting.clear()
                self.stop.touch()
            room = (most or max(QUEUE, 4 * int(self.ray.cluster_resources().get("CPU", 1)))) - len(self.under_way)
            now = time.monotonic()
            ready = [one for one in reversed(waiting) if one.not_before <= now][: max(0, room)]
            for one in ready:
                waiting.remove(one)
                self.under_way[self._submit(one)] = one
            done, _ = self.ray.wait(list(self.under_way), timeout=0.5) if self.under_way else ([], [])
            if not done and not self.under_way:
                time.sleep(0.2)
            for task in done:
                again = self._end(task, self.under_way.pop(task))
                if again and not stopped():
                    waiting.append(again)
            tick()

    def _submit(self, one: _Try) -> Any:
        wanted = stack_resources([self.demands[cell.run_id] for cell in one.cells])
        # a task that requests more memory than any node has would wait forever
        most = max(node["Resources"].get("memory", 0) for node in self.ray.nodes() if node["Alive"])
        # Ray's own retries are off, because Ray counts every lost worker, even after hours of progress. The module
        # `worker_losses` counts only the workers that were lost without progress.
        task = self.ray.remote(
            num_cpus=wanted.cpus, num_gpus=wanted.gpus, memory=min(wanted.memory, int(most)), max_retries=0
        )(_execute_task)
        places = (Path.cwd(), self.study.path.resolve(), self.stop.resolve())
        one.killed = self._killed(one)
        return task.remote(one.cells, places, self.job, self.threads)

    def _end(self, task: Any, one: _Try) -> _Try | None:
        """Handle the end of a task. Return the runs to try again; None if there are none."""
        try:
            held = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            for cell in one.cells:
                self._note(self.study.run(cell.run_id), cause)
            return None
        except self.ray.exceptions.RayError as error:
            # a worker can also be lost before it claims a run
            how, began = type(error).__name__, self._killed(one) > one.killed
            opened = [cell for cell in one.cells if self._open(cell)]
            left = [cell for cell in opened if note_lost_worker(self.study.run(cell.run_id), how, began)]
            return _Try(left, one.refused) if left else None
        left = [cell for cell in one.cells if cell.run_id in held and self._open(cell)]
        since = one.refused or time.monotonic()
        if not left or time.monotonic() - since >= HELD:
            return None
        return _Try(left, since, time.monotonic() + AGAIN)

    def _killed(self, one: _Try) -> int:
        return sum(self.study.run(cell.run_id).killed() for cell in one.cells)

    def _open(self, cell: HasRunId) -> bool:
        folder = self.study.run(cell.run_id)
        return not folder.done and not folder.failure()

    def _note(self, folder: RunFolder, error: Exception) -> None:
        with folder.claim() as claimed:
            if claimed and not folder.done:
                note_failure(folder, error)


def _execute_task(cells: Sequence[HasRunId], places: tuple[Path, Path, Path], job: Job, threads: int) -> list[str]:
    """Execute a task on a node. Return the ids of runs that other processes have claimed."""
    # the folder for relative paths, the study's folder, and the path of the stop file
    here, path, stop = places
    if here.is_dir():
        os.chdir(here)
    if not (path / "recipe.yaml").is_file():
        raise UserError(f"a node of the cluster does not see {path}; use an --out on a disk that all nodes share")
    return attempt_together(cells, StudyFolder(path), job, threads, _at_most_every(stop.exists), lambda: None)


def _card_bytes() -> int | None:
    from petransfer.memory.cards import this_card

    card = this_card()
    return card.bytes if card else None


def _at_most_every(ask: Callable[[], bool], seconds: float = 1.0) -> Callable[[], bool]:
    """Return a version of `ask` that calls `ask` at most once every `seconds`."""
    # `ask` reads a remote disk, which is slow; after its first True, `ask` is not called again
    last, answered = 0.0, False

    def asked() -> bool:
        nonlocal last, answered
        if not answered and time.monotonic() - last >= seconds:
            last, answered = time.monotonic(), ask()
        return answered

    return asked


@contextlib.contextmanager
def _stop_file(study: StudyFolder) -> Iterator[Path]:
    """Yield the path of a stop file. All workers stop when this file exists."""
    path = study.path / f".stop-{uuid.uuid4().hex[:8]}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
