"""Stage c: examples per second of a LoRA step, each fast path in turn, beside Seq2SeqTrainer with peft."""

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

from benchmarks.gpu.graphed import Options, StaticStep, pad_widths
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
from petransfer.training.loop import Hooks, Loop
from petransfer.training.losses import token_loss
from petransfer.training.stacked.layers import share
from petransfer.training.stacked.stacked_loop import StackedLoop, make_stack

LORA = MethodSpec("lora", bits=16, rank=16, alpha=32.0)


@dataclass(frozen=True)
class Workload:
    """What every variant trains: the same base, examples, batches and steps.

    Attributes:
        name: The checkpoint, or the registered one whose shape is taken.
        loaded: The base on the device.
        examples: The training examples as token ids.
        train: Batch size, learning rate and schedule.
        device: Where it is trained.
        steps: Optimiser steps that are timed.
        members: Runs of a stack.
        backend: The backend of torch.compile; without a card one that needs no compiler.
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
        """Separate LoRA matrices on the shared base."""
        return apply_method(replace(self.loaded, model=share(self.loaded.model)), LORA, seed).to(self.device).train()

    def source(self, seed: int = 0) -> ShuffledExamples:
        """The batches of a run."""
        return ShuffledExamples(self.examples, self.train.batch_size, seed, self.loaded.layout)

    def loop(self, folder: Path, seed: int = 0, **changes: Any) -> Loop:
        """The training loop of a run."""
        return Loop(
            self.model(seed), self.source(seed), self.train, Process(self.device), folder,
            identity="", seed=seed, execution=Execution(**changes), hooks=Hooks(),
        )  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: What it is called in the records.
        make: Gives a function that takes `count` steps from step `first` on and returns the last loss.
        stacked: It trains all members of a stack at once.
    """

    name: str
    make: Callable[[Workload, Path], Callable[[int, int], float]]
    stacked: bool = False


def run(records: Records, task: Task) -> None:
    """Time every variant on the small embedded model and on t5-base's shape, the most telling ones first."""
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
    for measure in compiled:  # last, because compiling every shape takes longer than all others together
        measure()


def _add(
    records: Records, task: Task, workload: Workload, shared: dict[str, Any], seconds: float, variant: Variant
) -> None:
    """Time a variant and record it. seconds: of an example at the measured matrix-product rate."""
    if task.seconds_left < 8:
        return
    found = _timed(variant, workload, task)
    gc.collect()  # a step and its graphs refer to each other; graphs must not die during a later capture
    if "examples_per_second" in found:
        found["share_of_matmul_rate"] = round(found["examples_per_second"] * seconds, 4)
    runs = workload.members if variant.stacked else 1
    records.add(what="training", variant=variant.name, runs=runs, **shared, **found)


def _nano(device: torch.device, rehearse: bool) -> Workload:
    loaded = load_checkpoint(checkpoint_spec("nano/english"), 16, device=device)
    examples = encode_examples(_rows(rehearse), "", loaded.tokenizer, loaded.layout)
    return Workload("nano/english", loaded, examples, _train(rehearse), device, *_sizes(60, rehearse))


def _t5_base(device: torch.device, rehearse: bool) -> Workload:
    """t5-base's shape with random weights, fed with the embedded tokenizer's ids, which its vocabulary contains."""
    name = "google-t5/t5-small" if rehearse else "google-t5/t5-base"
    loaded = random_model(name, LORA, device, 1 if rehearse else None)
    for module in loaded.model.modules():  # as in the embedded model; a stack's own dropout cannot be replayed
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    small = load_checkpoint(checkpoint_spec("nano/english"), 16)
    examples = encode_examples(_rows(rehearse), "", small.tokenizer, small.layout)
    loaded = replace(loaded, tokenizer=small.tokenizer)
    return Workload(name, loaded, examples, _train(rehearse), device, *_sizes(30, rehearse))


def _sizes(steps: int, rehearse: bool) -> tuple[int, int, str]:
    """Timed steps, members of a stack, and the backend of torch.compile."""
    return (1, 2, "eager") if rehearse else (steps, 8, "inductor")


def _rows(rehearse: bool) -> Any:
    return load_task("scan").load("around_right").train[: 40 if rehearse else 8000]


def _train(rehearse: bool) -> TrainSpec:
    return TrainSpec(10**6, 2 if rehearse else 32, 1e-3)


def _timed(variant: Variant, workload: Workload, task: Task) -> dict[str, Any]:
    """Examples per second; the first steps warm up. A variant that fails is recorded with its error."""
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
        except Exception as error:  # the others are still to be measured
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
    """Batches padded to few shapes; cut on the way as the loop cuts them on a card."""
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
    """With wider steps between shapes, each of which is compiled."""
    return _static(workload, folder, Options(multiple=32, compile=workload.backend))


def _pinned(batch: Batch, device: torch.device, multiple: int) -> list[Tensors]:
    """The micro-batches, padded; on a card in pinned memory."""
    cuts = [pad_widths(cut, multiple) for cut in batch.micro_batches(len(batch.examples))]
    if device.type != "cuda":
        return cuts
    return [{name: value.pin_memory() for name, value in cut.items()} for cut in cuts]


def _stacked(workload: Workload, folder: Path) -> Callable[[int, int], float]:
    loops = [workload.loop(folder / str(seed), seed) for seed in range(workload.members)]
    stack = make_stack(share(workload.loaded.model), [loop.model for loop in loops])
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
    stack = make_stack(share(workload.loaded.model), [workload.model(seed) for seed in range(workload.members)])
    sources = [workload.source(seed) for seed in range(workload.members)]
    steps = StackedStep(stack, workload.train, workload.device, options)

    def take(first: int, count: int) -> float:
        losses = torch.zeros(1)
        for step in range(first, first + count):
            losses = steps.step(step, [source.batch(step, 0, 1) for source in sources])
        return float(losses[0])

    return take


def liger_loss(model: Any, batch: Any) -> torch.Tensor:
    """Compute the summed cross-entropy in nats by Liger's kernel, without the logits; needs liger-kernel and a card."""
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
    """Seq2SeqTrainer with peft in bf16, on random batches and grouped by length."""
    orders = {"Seq2SeqTrainer": in_turn, "Seq2SeqTrainer, grouped by length": grouped_by_length}
    for name, ordered in orders.items():
        if task.seconds_left < 6:
            return
        with tempfile.TemporaryDirectory() as folder:
            loaded = replace(workload.loaded, model=share(workload.loaded.model))
            train = replace(workload.train, steps=100)
            plain = Plain(workload.model(), loaded, workload.source(), LORA, train, workload.device)
            try:
                turn = trainer_turn(plain, Path(folder), 2 if task.rehearse else BLOCK, ordered)
                rates = [turn() for _ in range(1 if task.rehearse else 2)]
            except Exception as error:  # the others are still to be measured
                yield {"variant": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
            else:
                yield {"variant": name, "examples_per_second": round(statistics.median(rates), 2)}


def _profile(workload: Workload) -> dict[str, float]:
    """Shares of the card's time of three eager steps, by kind of operation."""
    with tempfile.TemporaryDirectory() as folder:
        take = _eager(workload, Path(folder))
        take(0, 3)
        return shares(lambda: take(3, 3), PARTS, workload.device)


def _flops(workload: Workload) -> float:
    """Floating-point operations of the linear layers for a mean example, forward and backward, without padding."""
    rows = workload.examples
    source = sum(len(row.input_ids) for row in rows) / len(rows)
    target = sum(len(row.target_ids) for row in rows) / len(rows)
    return linear_flops(workload.model(), workload.loaded.layout, source, target, 4, 6)
