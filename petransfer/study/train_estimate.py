"""Count the tokens and predict the time of a training, for `petransfer train --plan`."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.data import Example, load_task
from petransfer.errors import RunError, UserError
from petransfer.models.registry import is_embedded
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec, TrainSpec
from petransfer.study.durations import rough_duration
from petransfer.study.grid import Cell
from petransfer.study.used_rows import used_data

if TYPE_CHECKING:
    from petransfer.memory.planner import Fit

# The largest number of training rows whose tokens are counted, the number of training steps that are run to measure the
# time (the first two are not timed), and the largest number of examples in such a step. The time of a larger step is
# estimated from a step of this size.
SAMPLED_ROWS, MEASURED_STEPS, MEASURED_BATCH = 500, 6, 64
# Characters per token of English text. Used if the tokenizer is not on this machine.
CHARACTERS = 4.0
# The speed of a training step as a share of the machine's speed in matrix products, both in operations per second
# (measured in results/bench/train-cpu.json).
REACHED = 0.4
# Bytes of one weight by dtype.
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "nf4": 0.5}


@dataclass(frozen=True)
class TokenCounts:
    """The numbers of tokens in a sample of the training rows.

    Attributes:
        inputs, targets: The mean number of tokens of an input and of a target.
        longest: The largest number of tokens of an input and of a target.
        counted: True: counted by the tokenizer. False: estimated from the number of characters.
        packed: With packing, the mean number of rows of an optimiser step, and the mean number of tokens of these rows,
            padding included. None: no packing.
    """

    inputs: float
    targets: float
    longest: tuple[int, int]
    counted: bool
    packed: tuple[float, float] | None = None

    def line(self, rows: int) -> str:
        """Describe the numbers of tokens in one line. rows: the number of training rows."""
        how = "" if self.counted else "about "
        head = (
            "tokens" if self.counted else "tokens (roughly, from the characters: the tokenizer is not on this machine)"
        )
        total = rows * (self.inputs + self.targets)
        packed = ""
        if self.packed:
            packed = f"; a step has {how}{self.packed[0]:.1f} packed rows with {self.packed[1]:,.0f} tokens in all"
        if not self.counted:  # the largest number would be taken for a limit
            means = f"about {self.inputs:.0f} per input and {self.targets:.0f} per target on average"
            return f"{head}: {means}, about {total:,.0f} per epoch{packed}"
        return (
            f"{head}: {self.inputs:.1f} per input on average (at most {self.longest[0]}), "
            f"{self.targets:.1f} per target (at most {self.longest[1]}), {total:,.0f} per epoch{packed}"
        )


@dataclass(frozen=True)
class TimeEstimate:
    """The expected time of one training run.

    Attributes:
        step: Seconds of one optimiser step.
        evaluations: Seconds of all evaluations on dev.
        measured: True: training steps were timed. False: estimated from model size and machine speed.
    """

    step: float
    evaluations: float
    measured: bool

    def line(self, train: TrainSpec, runs: int = 1) -> str:
        """Describe the expected time in one line. runs: the number of training runs."""
        total = train.steps * self.step + self.evaluations
        about = f"about {rough_duration(total)}" + (f" per training run ({runs:,} runs)" if runs > 1 else "")
        whole = "all steps are needed and " if train.early_stopping else ""
        end = f"if {whole}nothing else runs on this machine"
        shown = f"{1000 * self.step:,.0f} ms" if self.step < 10 else f"{self.step:,.0f} s"
        if self.measured:
            return f"time: {about} {end} ({shown} per step, measured)"
        return (
            f"time: {about} {end} ({shown} per step, estimated from the size of the model and the speed of the machine)"
        )


def tokens_of(spec: RunSpec, device: str) -> TokenCounts:
    """Return the numbers of tokens of evenly spaced training rows.

    device: `cuda` or `cpu`. With packing, it determines how many examples are packed together.

    Raises:
        UserError: The tokenizer can represent none of the rows.
    """
    if is_local(spec) and spec.task.skips_bad_rows:
        rows = used_data(spec, None).train
    else:
        rows = load_task(spec.task.name, None, **spec.task.arguments).load(spec.task.split).train
    chosen = [rows[at] for at in range(0, len(rows), -(-len(rows) // SAMPLED_ROWS))]
    source, target = _counted(spec, chosen) if is_local(spec) else _estimated(spec, chosen)
    packed = _packed(source, target, spec.train.batch_size, device) if spec.train.packing else None
    return TokenCounts(
        statistics.mean(source), statistics.mean(target), (max(source), max(target)), is_local(spec), packed
    )


def _counted(spec: RunSpec, rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Return the numbers of tokens of the inputs and of the targets, encoded as in training."""
    from petransfer.data.chat import chat_layout
    from petransfer.data.encoded_examples import encode_part
    from petransfer.models.architecture import configuration
    from petransfer.models.loading import tokenizer_and_layout

    tokenizer, layout = tokenizer_and_layout(spec.checkpoint, configuration(spec.checkpoint)[0])
    encoded = encode_part(rows, spec.task.prefix, tokenizer, chat_layout(tokenizer, layout, rows[0].chat)).encoded
    if not encoded:
        raise UserError("the tokenizer can represent none of the rows")
    return [len(one.input_ids) for one in encoded], [len(one.target_ids) for one in encoded]


def _estimated(spec: RunSpec, rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Return the numbers of tokens of the inputs and of the targets, estimated from their characters."""
    texts = [spec.task.prefix + row.input for row in rows], [row.target for row in rows]
    source, target = ([max(1, round(len(text) / CHARACTERS)) for text in part] for part in texts)
    return source, target


def _packed(source: list[int], target: list[int], batch_size: int, device: str) -> tuple[float, float]:
    """Return the mean number of rows and of tokens of an optimiser step whose examples are packed.

    The examples are cut into the same micro-batches as in training.

    Args:
        source, target: The number of tokens of each input and of each target.
        batch_size: The number of examples in an optimiser step.
        device: `cuda` or `cpu`.
    """
    import torch

    from petransfer.data.encoding import Encoded, Layout
    from petransfer.training.batches import Batch
    from petransfer.training.out_of_memory import default_micro_batch, default_token_budget
    from petransfer.training.packing import collate_packed

    examples = [Encoded((1,) * inputs, (1,) * targets) for inputs, targets in zip(source, target, strict=True)]
    examples *= -(-batch_size // len(examples))
    place, layout = torch.device(device), Layout(encoder_decoder=False, pad_id=0, eos_id=1)
    size, budget = default_micro_batch(batch_size, place), default_token_budget(place)
    shapes = []
    for at in range(0, len(examples) - batch_size + 1, batch_size):
        batch = Batch(examples[at : at + batch_size], 1, layout, collate_packed)
        shapes.append([micro["input_ids"].shape for micro in batch.micro_batches(size, budget)])
    rows = statistics.mean(sum(shape[0] for shape in step) for step in shapes)
    return rows, statistics.mean(sum(shape.numel() for shape in step) for step in shapes)


def is_local(spec: RunSpec) -> bool:
    """Return whether the checkpoint of a run is on this machine: shipped with petransfer, or a folder."""
    return is_embedded(spec.checkpoint.name) or Path(spec.checkpoint.source or spec.checkpoint.name).is_dir()


def time_of(cell: Cell, tokens: TokenCounts, dev_rows: int, fit: Fit, cpu: bool) -> TimeEstimate:
    """Return the expected time of a run, with `dev_rows` rows in the dev set.

    Steps are timed if the checkpoint is on this machine and the training fits. Otherwise the time is estimated.
    """
    from petransfer.study.run_scoring import CURVE_EXAMPLES, STOPPING_EXAMPLES, evaluation_steps

    spec, measured = cell.spec, is_local(cell.spec) and fit.fits
    step = _measured_step(spec, cpu) if measured else _estimated_step(spec, tokens, fit, cpu)
    scored = min(dev_rows, STOPPING_EXAMPLES if spec.train.early_stopping else CURVE_EXAMPLES)
    forward = step / spec.train.batch_size / 3  # the backward pass takes about twice as long as the forward pass
    return TimeEstimate(step, len(evaluation_steps(spec.train)) * scored * forward, measured)


def _measured_step(spec: RunSpec, cpu: bool) -> float:
    """Time a few training steps and return the median in seconds."""
    from petransfer.study.folders import RunFolder
    from petransfer.study.settings import Settings
    from petransfer.study.single_run import make_loop, open_base, prepare

    batch = min(spec.train.batch_size, MEASURED_BATCH)
    short = replace(spec, train=replace(spec.train, steps=MEASURED_STEPS, batch_size=batch, early_stopping=None))
    # a fold has no test rows
    settings = Settings(cpu=cpu, force=True, dev_only=bool(spec.task.source.get("fold")))
    ends = list[float]()
    with tempfile.TemporaryDirectory() as folder:
        base = open_base(short, settings)
        prepared = prepare(short, RunFolder(Path(folder)), base)
        loop = make_loop(
            prepared, base, settings.execution, lambda step, loss, seconds: ends.append(seconds), lambda: False
        )
        # Scoring the dev set takes time. The loop and its evaluation on dev share the hooks, so these are not replaced.
        loop.hooks.evaluate_at = ()
        loop.reads_every_step = True  # otherwise, a step on a GPU ends before its kernels have run
        loop.run()
    step = statistics.median(after - before for before, after in itertools.pairwise(ends[1:]))
    return step * spec.train.batch_size / batch


def _estimated_step(spec: RunSpec, tokens: TokenCounts, fit: Fit, cpu: bool) -> float:
    """Estimate the seconds of a training step from the floating-point operations."""
    from petransfer.models.architecture import configuration  # imports transformers

    # the entry `scales` holds constants of the quantisation, which are no weights
    parameters = sum(size / _BYTES.get(dtype, 2.0) for dtype, size in fit.memory.weights.items() if dtype != "scales")
    full = METHODS.lookup(spec.method.name).trains_all_weights
    # For each weight and token there are 2 operations in the forward pass and 2 for the gradient of the activations.
    # Full fine-tuning has 2 more for the gradient of the weight. In an encoder-decoder model, half of the weights
    # process the input and half of them the target; in a decoder-only model, all weights process both.
    tokens_seen = tokens.packed[1] if tokens.packed else spec.train.batch_size * (tokens.inputs + tokens.targets)
    tokens_seen /= 2 if configuration(spec.checkpoint)[0].is_encoder_decoder else 1
    return (
        (6 if full else 4) * parameters * tokens_seen / (REACHED * _product_rate(cpu or fit.step_spec.device == "cpu"))
    )


def _product_rate(cpu: bool) -> float:
    """Measure the floating-point operations per second in matrix products."""
    import torch

    from petransfer.training.cpu.speed import measure_speed

    if cpu:
        return measure_speed(32, torch.get_num_threads(), 0.3).flops
    left = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    torch.matmul(left, left)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        torch.matmul(left, left)
    torch.cuda.synchronize()
    return 20 * 2 * 4096**3 / (time.perf_counter() - began)


def estimate_lines(cell: Cell, rows: dict[str, int], fit: Fit, cpu: bool, runs: int = 1) -> list[str]:
    """Return two lines about a training: the tokens and the expected time of one training run.

    Args:
        cell: The first training run.
        rows: The number of rows in `train` and `dev`.
        fit: The predicted memory.
        cpu: Whether the CPU is used even if there is a GPU.
        runs: The number of training runs.
    """
    try:
        tokens = tokens_of(cell.spec, fit.step_spec.device)
    except UserError as problem:  # the training would fail for the same reason
        return [f"tokens and time: not known ({problem})"]
    lines = [tokens.line(rows["train"])]
    try:
        return [*lines, time_of(cell, tokens, rows["dev"], fit, cpu).line(cell.spec.train, runs)]
    except (UserError, RunError) as problem:  # the training would fail for the same reason
        return [*lines, f"time: not known ({problem})"]


def as_json(cell: Cell, rows: dict[str, int], fit: Fit, cpu: bool, runs: int = 1) -> dict[str, Any]:
    """Return the tokens, the expected time of one training run in seconds, and the number of runs as JSON values."""
    tokens = tokens_of(cell.spec, fit.step_spec.device)
    found = time_of(cell, tokens, rows["dev"], fit, cpu)
    return {
        "tokens": vars(tokens),
        "seconds": {
            "step": found.step,
            "most": cell.spec.train.steps * found.step + found.evaluations,
            "measured": found.measured,
        },
        "runs": runs,
    }
