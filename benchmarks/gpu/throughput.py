"""Stage c: compare the training speed of LoRA by each of several fast paths, and by Seq2SeqTrainer with peft."""

from __future__ import annotations

import functools
import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.graphed import Options, StaticStep
from benchmarks.gpu.random_models import random_model
from benchmarks.gpu.records import Records
from benchmarks.gpu.stacked_step import StackedStep
from benchmarks.gpu.stages import Task
from benchmarks.profile import shares
from benchmarks.sides import clock, linear_flops, matmul_rate
from benchmarks.stacked import PARTS
from benchmarks.training import BLOCK, Plain, grouped_by_length, in_turn, trainer_turn
from petransfer.data import load_task
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.methods import apply_method
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.quiet_libraries import silence_libraries
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec, TrainSpec
from petransfer.training.batches import Batch, ShuffledExamples, Tensors
from petransfer.training.distributed import Process
from petransfer.training.execution import Execution
from petransfer.training.graphs import pad_widths
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from petransfer.training.losses import token_loss
from petransfer.training.stacked.layers import shared_copy
from petransfer.training.stacked.stacked_loop import StackedLoop, make_stack

LORA = MethodSpec("lora", bits=16, rank=16, alpha=32.0)


@dataclass(frozen=True)
class Workload:
    """The training that is timed with every variant: the base, the examples, the batches and the number of steps.

    Attributes:
        name: The checkpoint, or the registered checkpoint whose shape the base has.
        loaded: The base on the device.
        examples: The training examples as token ids.
        train: Batch size, learning rate and schedule.
        device: The device of the training.
        steps: Number of optimiser steps that are timed.
        members: Number of runs in a stack.
        backend: The backend of torch.compile. A rehearsal uses one that needs no compiler.
    """

    name: str
    loaded: Loaded
    examples: Sequence[Encoded]
    train: TrainSpec
    device: torch.device
    steps: int
    members: int
    backend: str

    def model(self, seed: int = 0) -> torch.nn.Module:
        """Return a model with its own LoRA matrices on the shared base."""
        return (
            apply_method(replace(self.loaded, model=shared_copy(self.loaded.model)), LORA, seed).to(self.device).train()
        )

    def source(self, seed: int = 0) -> ShuffledExamples:
        """Return the batches of a run."""
        return ShuffledExamples(self.examples, self.train.batch_size, seed, self.loaded.layout)

    def loop(self, folder: Path, seed: int = 0, **changes: Any) -> Loop:
        """Return the training loop of a run. changes: arguments of `Execution`."""
        return Loop(
            self.model(seed), self.source(seed), self.train, Process(self.device), folder,
            identity="", seed=seed, execution=Execution(**changes), hooks=Hooks(),
        )  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: The variant's name in the records.
        make: Returns a function `take(first, count)`, which takes `count` optimiser steps, beginning with step number
            `first`, and returns the loss of the last step.
        stacked: Whether the variant trains all members of a stack at once.
    """

    name: str
    make: Callable[[Workload, Path], Callable[[int, int], float]]
    stacked: bool = False


def run(records: Records, task: Task) -> None:
    """Time every variant on the embedded nano model and on a model of t5-base's shape, and record the results."""
    silence_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() and not task.rehearse else "cpu")
    compiled: list[Callable[[], None]] = []
    for make in (_nano, _t5_base):
        workload = make(device, task.rehearse)
        chosen = VARIANTS[:2] if task.rehearse and make is _t5_base else VARIANTS
        rate = matmul_rate(device, 16)
        work = _flops(workload)
        shared = {"checkpoint": workload.name, "bits": 16, "batch": workload.train.batch_size, "steps": workload.steps}
        records.add(what="machine", **shared, matmul_flops_per_second=round(rate), flops_per_example=round(work))
        add = functools.partial(_add, records, task, workload, shared, work / rate)
        for variant in chosen:
            add(variant)
        for row in _trainers(workload, task) if chosen is VARIANTS else ():
            records.add(what="training", runs=1, **shared, **row)
        if chosen is VARIANTS and task.seconds_left > 10:
            records.add(what="profile", **shared, shares=_profile(workload))
        if chosen is VARIANTS:
            compiled.append(functools.partial(add, COMPILED))
    for measure in compiled:  # last, because compiling all shapes takes longer than all other variants together
        measure()


def _add(
    records: Records, task: Task, workload: Workload, shared: dict[str, Any], seconds: float, variant: Variant
) -> None:
    """Time a variant and record the result.

    seconds: the time that an example would take if all its operations ran at the measured speed of matrix products.
    """
    if task.seconds_left < 8:
        return
    found = _timed(variant, workload, task)
    # A step and its graphs refer to each other. They must not be deleted during a later capture, so delete them now.
    gc.collect()
    if "examples_per_second" in found:
        found["share_of_matmul_rate"] = round(found["examples_per_second"] * seconds, 4)
    runs = workload.members if variant.stacked else 1
    records.add(what="training", variant=variant.name, runs=runs, **shared, **found)


def _nano(device: torch.device, rehearse: bool) -> Workload:
    loaded = load_checkpoint(checkpoint_spec("nano/english"), 16, device=device)
    examples = encode_examples(_rows(rehearse), "", loaded.tokenizer, loaded.layout)
    return Workload("nano/english", loaded, examples, _train(rehearse), device, *_sizes(60, rehearse))


def _t5_base(device: torch.device, rehearse: bool) -> Workload:
    """Return the workload on a model of t5-base's shape with random weights.

    The examples are encoded by the embedded tokenizer. All its ids are valid for t5-base, whose vocabulary is larger.
    """
    name = "google-t5/t5-small" if rehearse else "google-t5/t5-base"
    loaded = random_model(name, LORA, device, 1 if rehearse else None)
    # Like the embedded model, this one must have no dropout, because the dropout of a stack cannot be replayed.
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    small = load_checkpoint(checkpoint_spec("nano/english"), 16)
    examples = encode_examples(_rows(rehearse), "", small.tokenizer, small.layout)
    loaded = replace(loaded, tokenizer=small.tokenizer)
    return Workload(name, loaded, examples, _train(rehearse), device, *_sizes(30, rehearse))


def _sizes(steps: int, rehearse: bool) -> tuple[int, int, str]:
    """Return the number of timed steps, the number of members of a stack, and the backend of torch.compile."""
    return (1, 2, "eager") if rehearse else (steps, 8, "inductor")


def _rows(rehearse: bool) -> Any:
    return load_task("scan").load("around_right").train[: 40 if rehearse else 8000]


def _train(rehearse: bool) -> TrainSpec:
    return TrainSpec(10**6, 2 if rehearse else 32, 1e-3)


def _timed(variant: Variant, workload: Workload, task: Task) -> dict[str, Any]:
    """Measure the examples per second of a variant. The first steps are not timed.

    If the variant fails, its error is returned instead.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            started = clock(workload.device)
            take = variant.make(workload, Path(folder))
            first_loss = take(0, 1)
            warm = 1 if task.rehearse else 12
            take(1, warm)
            ready = clock(workload.device)
            if task.seconds_left < 4:
                return {"error": "no time was left after warming up", "warm_up_seconds": round(ready - started, 1)}
            seconds = []
            done = 1 + warm
            for _ in range(1 if task.rehearse else 3):
                before = clock(workload.device)
                last = take(done, workload.steps)
                seconds.append(clock(workload.device) - before)
                done += workload.steps
        except Exception as error:  # one failing variant must not stop the others
            return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    examples = (workload.members if variant.stacked else 1) * workload.steps * workload.train.batch_size
    return {
        "examples_per_second": round(examples / statistics.median(seconds), 2),
        "seconds": [round(one, 4) for one in seconds],
        "warm_up_seconds": round(ready - started, 1),
        "first_loss": round(first_loss, 6),
        "last_loss": round(last, 6),
    }


def _eager(workload: Workload, folder: Path, **changes: Any) -> Callable[[int, int], float]:
    loop = workload.loop(folder, **changes)
    loop.model.train()

    def take(first: int, count: int) -> float:
        loss = torch.zeros(())
        for step in range(first, first + count):
            loss, _ = loop.take_step(step)
        return float(loss)

    return take


def _static(workload: Workload, folder: Path, options: Options, loss: Any = token_loss) -> Callable[[int, int], float]:
    """Return the steps of a variant that pads batches to few shapes.

    The batches are padded and pinned while the steps are timed, as in the training loop on a GPU.
    """
    source = workload.source()
    steps = StaticStep(workload.model(), workload.train, workload.device, options, loss)

    def take(first: int, count: int) -> float:
        loss = torch.zeros(())
        for step in range(first, first + count):
            batch = source.batch(step, 0, 1)
            loss = steps.step(step, batch, _pinned(batch, workload.device, options.multiple))
        return float(loss)

    return take


def _compiled(workload: Workload, folder: Path) -> Callable[[int, int], float]:
    """Return the steps of the compiled variant. It pads to multiples of 32, because every shape is compiled."""
    return _static(workload, folder, Options(multiple=32, compile=workload.backend))


def _pinned(batch: Batch, device: torch.device, multiple: int) -> list[Tensors]:
    """Return the micro-batches of a batch, padded, and in pinned memory if the device is a GPU."""
    cuts = [pad_widths(cut, multiple) for cut in batch.micro_batches(len(batch.examples))]
    if device.type != "cuda":
        return cuts
    return [{name: value.pin_memory() for name, value in cut.items()} for cut in cuts]


def _stacked(workload: Workload, folder: Path) -> Callable[[int, int], float]:
    loops = [workload.loop(folder / str(seed), seed) for seed in range(workload.members)]
    stack = make_stack(shared_copy(workload.loaded.model), [loop.model for loop in loops])
    names = [str(at) for at in range(workload.members)]
    stacked = StackedLoop(stack, loops, names, workload.loaded.layout, lambda: False, lambda name, error: None)

    def take(first: int, count: int) -> float:
        for step in range(first, first + count):
            for error in stacked.step(step, [0.0] * workload.members):
                if error is not None:
                    raise error
        return float(loops[0]._mean_loss)

    return take


def _stacked_static(workload: Workload, folder: Path, options: Options) -> Callable[[int, int], float]:
    stack = make_stack(shared_copy(workload.loaded.model), [workload.model(seed) for seed in range(workload.members)])
    sources = [workload.source(seed) for seed in range(workload.members)]
    steps = StackedStep(stack, workload.train, workload.device, options)

    def take(first: int, count: int) -> float:
        losses = torch.zeros(1)
        for step in range(first, first + count):
            losses = steps.step(step, [source.batch(step, 0, 1) for source in sources])
        return float(losses[0])

    return take


def liger_loss(model: Any, batch: Any) -> torch.Tensor:
    """Compute the summed cross-entropy in nats with Liger's kernel, which does not store the logits.

    Needs the package liger-kernel and a GPU.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    from petransfer.training.losses import hidden_states, known_head

    known = known_head(model)
    assert known is not None
    hidden_nd = hidden_states(model, known, batch)
    arguments = (hidden_nd, known.layer.weight, batch["labels"].flatten(), None, None, -100, 0.0, 0.0, "sum")
    return LigerFusedLinearCrossEntropyFunction.apply(*arguments)[0]


VARIANTS = (
    Variant("petransfer, loop", _eager),
    Variant("petransfer, static shapes", functools.partial(_static, options=Options(replay=False))),
    Variant("petransfer, CUDA graphs", functools.partial(_static, options=Options())),
    Variant("petransfer, stacked", _stacked, stacked=True),
    Variant("petransfer, stacked, CUDA graphs", functools.partial(_stacked_static, options=Options()), stacked=True),
    Variant("petransfer, CUDA graphs, Liger's loss", functools.partial(_static, options=Options(), loss=liger_loss)),
)
COMPILED = Variant("petransfer, CUDA graphs, compile", _compiled)


def _trainers(workload: Workload, task: Task) -> Iterator[dict[str, Any]]:
    """Yield the results of Seq2SeqTrainer with peft in bf16: on random batches, then on batches grouped by length."""
    orders = {"Seq2SeqTrainer": in_turn, "Seq2SeqTrainer, grouped by length": grouped_by_length}
    for name, ordered in orders.items():
        if task.seconds_left < 6:
            return
        with tempfile.TemporaryDirectory() as folder:
            loaded = replace(workload.loaded, model=shared_copy(workload.loaded.model))
            train = replace(workload.train, steps=100)
            plain = Plain(workload.model(), loaded, workload.source(), LORA, train, workload.device)
            try:
                turn = trainer_turn(plain, Path(folder), 2 if task.rehearse else BLOCK, ordered)
                rates = [turn() for _ in range(1 if task.rehearse else 2)]
            except Exception as error:  # one failing measurement must not stop the other
                yield {"variant": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
            else:
                yield {"variant": name, "examples_per_second": round(statistics.median(rates), 2)}


def _profile(workload: Workload) -> dict[str, float]:
    """Return the percentage of the device's time that each kind of operation takes in three steps of the loop."""
    with tempfile.TemporaryDirectory() as folder:
        take = _eager(workload, Path(folder))
        take(0, 3)
        return shares(lambda: take(3, 3), PARTS, workload.device)


def _flops(workload: Workload) -> float:
    """Return the floating-point operations of a training step's linear layers for an example of mean length."""
    rows = workload.examples
    source = sum(len(row.input_ids) for row in rows) / len(rows)
    target = sum(len(row.target_ids) for row in rows) / len(rows)
    return linear_flops(workload.model(), workload.loaded.layout, source, target, 4, 6)
