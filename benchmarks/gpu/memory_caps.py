"""Stage b: train large T5 shapes with QLoRA in a part of the GPU's memory. Compare with the planner's prediction."""

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
from petransfer.memory.step_memory import StepSpec, simulate
from petransfer.models.quiet_libraries import silence_libraries
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec
from petransfer.training.out_of_memory import is_out_of_memory

QLORA = MethodSpec("lora", bits=4, rank=16, alpha=32.0)
LENGTHS = (64, 128)  # tokens of each input and each target
MOST = 128  # examples in a batch, and therefore the largest possible micro-batch

# (checkpoint, caps in gigabytes). The first cap of each checkpoint is the one that petransfer claims to be enough.
CELLS = (
    ("google-t5/t5-11b", (12, 16, 24, 8)),
    ("google-t5/t5-3b", (6, 8, 12, 16, 24)),
)
REHEARSAL = (("google-t5/t5-small", (1, 2)),)


@dataclass(frozen=True)
class Cell:
    """One measurement: a checkpoint's shape under a cap.

    name: the checkpoint. cap: bytes of the GPU that may be used. layers: number of layers of the encoder and of the
    decoder; None for as many as the checkpoint has. batch: examples in a batch. capability: CUDA compute capability.
    """

    name: str
    cap: int
    layers: int | None
    batch: int
    device: str
    capability: tuple[int, int]

    @property
    def step_spec(self) -> StepSpec:
        """The training step to predict and to measure, as the planner needs it."""
        return StepSpec(QLORA, self.batch, *LENGTHS, device=self.device, capability=self.capability)  # type: ignore[arg-type]


def run(records: Records, task: Task) -> None:
    """Measure all checkpoints under all their caps, and write a record for each measurement."""
    silence_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() and not task.rehearse else "cpu")
    names, batch, layers = (REHEARSAL, 2, 1) if task.rehearse else (CELLS, MOST, None)
    cells = {
        name: [Cell(name, int(gigabytes * 1e9), layers, batch, device.type, capability()) for gigabytes in caps]
        for name, caps in names
    }
    everyone = [cell for group in cells.values() for cell in group]
    with _planner(task.rehearse) as ask:
        plans = {cell: ask(cell) for cell in everyone}  # other processes predict while this one makes the model
        for name, group in cells.items():
            _measure_shape(records, name, layers, group, plans, device)


def predict(cell: Cell) -> Fit:
    """Return the planner's prediction: the largest micro-batch that fits under the cell's cap."""
    config, own_head = shape_of(cell.name, cell.layers)
    return plan(config, checkpoint_spec(cell.name), cell.step_spec, own_head, cell.cap)


class _planner:
    """A context manager that gives a function. The function takes a cell and returns the prediction as a future.

    Predictions run in other processes, or in this process if `here` is True.
    """

    def __init__(self, here: bool) -> None:
        self._pool = None if here else ProcessPoolExecutor(9, get_context("spawn"))

    def __enter__(self) -> Callable[[Cell], Future[Fit]]:
        return self._ask

    def _ask(self, cell: Cell) -> Future[Fit]:
        if self._pool is not None:
            with _hidden_card():  # `submit` starts a process
                return self._pool.submit(predict, cell)
        done: Future[Fit] = Future()
        done.set_result(predict(cell))
        return done

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _hidden_card() -> Iterator[None]:
    """Hide the GPU from processes that start in the `with` block.

    Otherwise the GPU memory that they take would be counted as memory of this process.
    """
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
    """Make the model once, train it under each cap one after another, and write the records."""
    started = clock(device)
    loaded = random_model(name, QLORA, device, layers)
    trial = Trial(loaded, replace(cells[0].step_spec, accumulates=True))
    weights = sum(trial.weights.values())
    records.add(what="model", checkpoint=name, bits=4, weights=weights, seconds=round(clock(device) - started, 1))
    checkpointing = False
    # Gradient checkpointing cannot be turned off again, so the cells that need none come first.
    for cell in sorted(cells, key=lambda cell: plans[cell].result().step_spec.checkpointing):
        fit = plans[cell].result()
        if fit.step_spec.checkpointing and not checkpointing:
            trial.checkpoint()
            checkpointing = True
        step_spec = replace(fit.step_spec, checkpointing=checkpointing, accumulates=True)
        records.add(what="cap", checkpoint=name, **_under_cap(cell, fit, step_spec, trial, device))
    del trial, loaded
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _under_cap(cell: Cell, fit: Fit, step_spec: StepSpec, trial: Trial, device: torch.device) -> dict[str, Any]:
    """Measure the largest micro-batch that trains under a cap, its peak and its speed, and add the prediction."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((cell.cap - CONTEXT) / total)
    steps: dict[int, dict[str, Any]] = {}
    trains = functools.partial(_trains, trial, device, steps)
    foreseen = fit.step_spec.batch if fit.fits else 0
    largest = largest_near(trains, max(1, foreseen), cell.batch)
    found = steps.get(largest, {})
    config, own_head = shape_of(cell.name, cell.layers)
    predicted = simulate(config, cell.name, replace(step_spec, batch=max(1, largest)), own_head).peak
    peak = found.get("peak")
    row = {
        "cap": cell.cap,
        "lengths": LENGTHS,
        "checkpointing": step_spec.checkpointing,
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
    """Take two steps with `count` examples in a micro-batch. Return False if memory runs out.

    The seconds and the peak of the second step are written to `steps`.
    """
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
        tokens = 2 * count * sum(LENGTHS)  # a step has two micro-batches
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
    """Return the largest count up to `limit` with which training fits. 0 if none fits. The search begins at `guess`.

    While counts fail, they are reduced by a quarter. Then they grow by an eighth until one fails. So a good guess needs
    only two or three trials, but the result may be up to an eighth too small.
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
