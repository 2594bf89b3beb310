"""Stage b: QLoRA of large T5 shapes while PyTorch may use only a part of the card, beside what the planner predicts."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.gpu.random_models import random_model, shape_of
from benchmarks.gpu.records import Records
from benchmarks.gpu.stages import Task
from benchmarks.sides import clock
from petransfer.memory.measured import Trial, capability
from petransfer.memory.planner import CONTEXT, Fit, plan
from petransfer.memory.step_memory import Demand, simulate
from petransfer.models.quiet_libraries import silence_libraries
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec
from petransfer.training.out_of_memory import is_out_of_memory

QLORA = MethodSpec("lora", bits=4, rank=16, alpha=32.0)
LENGTHS = (64, 128)  # tokens of each input and each target
MOST = 128  # examples in a batch

# The claims come first: t5-11b in 12 GB, t5-3b in 6 GB.
CELLS = (
    ("google-t5/t5-11b", (12, 16, 24, 8)),
    ("google-t5/t5-3b", (6, 8, 12, 16, 24)),
)
REHEARSAL = (("google-t5/t5-small", (1, 2)),)


@dataclass(frozen=True)
class Cell:
    """A checkpoint's shape, a cap in bytes, and the device with its compute capability."""

    name: str
    cap: int
    layers: int | None
    batch: int
    device: str
    capability: tuple[int, int]

    @property
    def demand(self) -> Demand:
        """The training that is predicted and measured."""
        return Demand(QLORA, self.batch, *LENGTHS, device=self.device, capability=self.capability)  # type: ignore[arg-type]


def run(records: Records, task: Task) -> None:
    """Measure every cell; write one record for each."""
    silence_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() and not task.rehearse else "cpu")
    names, batch, layers = (REHEARSAL, 2, 1) if task.rehearse else (CELLS, MOST, None)
    cells = {
        name: [Cell(name, int(gigabytes * 1e9), layers, batch, device.type, capability()) for gigabytes in caps]
        for name, caps in names
    }
    everyone = [cell for group in cells.values() for cell in group]
    with _planner(task.rehearse) as ask:
        plans = {cell: ask(cell) for cell in everyone}  # predicted in other processes while the model is made
        for name, group in cells.items():
            _measure_shape(records, name, layers, group, plans, device)


def predict(cell: Cell) -> Fit:
    """Ask the planner for the largest micro-batch under the cell's cap."""
    config, own_head = shape_of(cell.name, cell.layers)
    return plan(config, checkpoint_spec(cell.name), cell.demand, own_head, cell.cap)


class _planner:
    """A context that gives a function from a cell to a future; predictions run in processes of their own."""

    def __init__(self, here: bool) -> None:
        self._pool = None if here else ProcessPoolExecutor(9, get_context("spawn"))

    def __enter__(self) -> Callable[[Cell], Future[Fit]]:
        return self._ask

    def _ask(self, cell: Cell) -> Future[Fit]:
        if self._pool is not None:
            with _hidden_card():  # submitting starts a process
                return self._pool.submit(predict, cell)
        done: Future[Fit] = Future()
        done.set_result(predict(cell))
        return done

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _hidden_card() -> Iterator[None]:
    """Hide the card from processes that are started meanwhile; their share of it would count as this process's."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _measure_shape(
    records: Records,
    name: str,
    layers: int | None,
    cells: list[Cell],
    plans: dict[Cell, Future[Fit]],
    device: torch.device,
) -> None:
    """Make the model once and train it under each cap in turn."""
    started = clock(device)
    loaded = random_model(name, QLORA, device, layers)
    trial = Trial(loaded, cells[0].demand)
    weights = sum(trial.weights.values())
    records.add(what="model", checkpoint=name, bits=4, weights=weights, seconds=round(clock(device) - started, 1))
    checkpointing = False
    for cell in sorted(cells, key=lambda cell: plans[cell].result().demand.checkpointing):  # it cannot be turned off
        fit = plans[cell].result()
        if fit.demand.checkpointing and not checkpointing:
            trial.checkpoint()
            checkpointing = True
        demand = replace(fit.demand, checkpointing=checkpointing)
        records.add(what="cap", checkpoint=name, **_under_cap(cell, fit, demand, trial, device))
    del trial, loaded
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _under_cap(cell: Cell, fit: Fit, demand: Demand, trial: Trial, device: torch.device) -> dict[str, Any]:
    """The largest micro-batch that trains under a cap, its peak and its speed, beside the prediction."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((cell.cap - CONTEXT) / total)
    steps: dict[int, dict[str, Any]] = {}
    trains = functools.partial(_trains, trial, device, steps)
    foreseen = fit.demand.batch if fit.fits else 0
    largest = largest_near(trains, max(1, foreseen), cell.batch)
    found = steps.get(largest, {})
    config, own_head = shape_of(cell.name, cell.layers)
    predicted = simulate(config, cell.name, replace(demand, batch=max(1, largest)), own_head).peak
    peak = found.get("peak")
    row = {
        "cap": cell.cap,
        "lengths": LENGTHS,
        "checkpointing": demand.checkpointing,
        "micro_batch_foreseen": foreseen,
        "micro_batch": largest,
        "predicted_peak": predicted,
        "ratio": round(predicted / peak, 4) if peak else None,
        **found,
        "tried": {str(count): step.get("seconds") for count, step in sorted(steps.items())},
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        row["outside_pytorch"] = total - free - torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction(1.0)
    return row


def _trains(trial: Trial, device: torch.device, steps: dict[int, dict[str, Any]], count: int) -> bool:
    """Take two steps with `count` examples at once and note the second one's peak and seconds; False without memory."""
    try:
        batch = trial.batch(count)
        trial.step(batch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = clock(device)
        trial.step(batch)
        seconds = clock(device) - started
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        steps[count] = {"seconds": None}
    else:
        tokens = count * sum(LENGTHS)
        steps[count] = {"seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds, 1)}
        if device.type == "cuda":
            steps[count]["peak"] = torch.cuda.max_memory_allocated(device)
            steps[count]["reserved"] = torch.cuda.max_memory_reserved(device)
        return True
    trial.optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return False


def largest_near(trains: Callable[[int], bool], guess: int, limit: int) -> int:
    """Return the largest count up to `limit` that trains, starting from a guess; 0 when not even one does.

    Beyond the guess it looks in steps of an eighth, so that a good guess costs two or three trials; the result may then
    be up to an eighth too small.
    """
    good = min(guess, limit)
    while good and not trains(good):
        good = good * 3 // 4
    while 0 < good < limit:
        more = min(limit, good + max(1, good // 8))
        if not trains(more):
            break
        good = more
    return good
