"""Compare the training speed of K runs as one stack with that of the same K runs one after another, in one process.

Seq2SeqTrainer with peft is measured on a single run, because K runs one after another train at the same speed.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.profile import shares
from benchmarks.sides import clock, hardware
from benchmarks.training import BLOCK, Plain, grouped_by_length, trainer_turn
from petransfer.data import load_task
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.methods import apply_method
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import Bits, MethodSpec, TrainSpec
from petransfer.training.batches import ShuffledExamples
from petransfer.training.distributed import Process
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from petransfer.training.stacked.layers import shared_copy
from petransfer.training.stacked.stacked_loop import StackedLoop, make_stack

# Kinds of operations in a step, each with words that occur in their names. The first match counts.
PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product", "_softmax"),
    "batched products": ("aten::bmm", "aten::baddbmm"),
    "products": ("aten::mm", "aten::addmm", "linear", "bitsandbytes"),
    "dropout": ("dropout", "bernoulli"),
    "loss": ("log_softmax", "nll_loss", "logsumexp", "ChunkedCrossEntropy"),
    "optimiser": ("adamw", "foreach", "_norm"),
    "moving": ("aten::cat", "aten::stack", "aten::copy_", "aten::fill_", "aten::zero_", "constant_pad", "slice"),
}


@dataclass(frozen=True)
class Setting:
    """The training to measure: LoRA on SCAN.

    Attributes:
        batch: Examples in an optimiser step of one run.
        micro_batch: Examples of one run in a forward pass. 0: chosen automatically.
        threads: CPU threads. 0 keeps the present number.
        rounds: Number of timed rounds.
        steps: Timed steps of each run in each round.
    """

    checkpoint: str = "nano/english"
    bits: Bits = 32
    rank: int = 16
    batch: int = 32
    micro_batch: int = 0
    threads: int = 0
    rounds: int = 5
    steps: int = 3
    split: str = "around_right"


def measure(
    setting: Setting, counts: Sequence[int], device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the examples per second of K runs one after another and of K runs as a stack, for each K in `counts`.

    The results are medians over rounds. In each round, the ways of training take turns.

    Args:
        say: Function that is called with one line of text after each round.
    """
    if setting.threads:
        torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(setting, max(counts), Path(folder), device)
        stacks = {count: bench.stack(count) for count in counts}
        trainer, trainers = bench.trainer(), []
        times: dict[tuple[str, int], list[float]] = {}
        for turn in range(setting.rounds + 1):
            for count in counts:
                ways: dict[str, Callable[[], None]] = {
                    "single": functools.partial(bench.one_by_one, count),
                    "stacked": stacks[count],
                }
                for way in sorted(ways, reverse=bool(turn % 2)):  # so that no way is always the first
                    taken = bench.seconds(ways[way])
                    if turn:  # the first round warms up
                        times.setdefault((way, count), []).append(taken)
            trainers.append(trainer())
            say(f"round {turn} of {setting.rounds}")
        profile = {
            "single": shares(lambda: bench.one_by_one(1), PARTS, device),
            f"stacked {max(counts)}": shares(stacks[max(counts)], PARTS, device),
        }
    return {
        "setting": asdict(setting),
        "hardware": hardware(device),
        "rows": [_row(setting, count, times, trainers[1:]) for count in counts],
        "profile": profile,
    }


class _Bench:
    """One loaded base, and training loops on it that differ only in their seed."""

    def __init__(self, setting: Setting, most: int, folder: Path, device: torch.device) -> None:
        self.setting, self.folder, self.device = setting, folder, device
        self.method = MethodSpec("lora", setting.bits, setting.rank, 2.0 * setting.rank)
        self.train = TrainSpec(10**6, setting.batch, 1e-3)
        self.loops = list[Loop]()
        spec = checkpoint_spec(setting.checkpoint)
        self.loaded: Loaded = load_checkpoint(spec, setting.bits, device=device)
        examples = load_task("scan").load(setting.split).train[:4000]
        self.examples: Sequence[Encoded] = encode_examples(examples, "", self.loaded.tokenizer, self.loaded.layout)
        self.singles = [self._loop(seed) for seed in range(most)]

    def trainer(self) -> Callable[[], float]:
        """Return a function that trains one run with Seq2SeqTrainer and returns the examples per second.

        It trains on `BLOCK` batches, grouped by length.
        """
        plain = Plain(self._model(0), self.loaded, self._source(0), self.method, self.train, self.device)
        return trainer_turn(plain, self.folder, BLOCK, grouped_by_length)

    def seconds(self, run: Callable[[], None]) -> float:
        """Call a function and return the seconds that it takes."""
        started = clock(self.device)
        run()
        return clock(self.device) - started

    def one_by_one(self, count: int) -> None:
        """Train `count` runs one after another, each for the setting's number of steps."""
        for loop in self.singles[:count]:
            for _ in range(self.setting.steps):
                step = loop.progress.step
                loop.record_step(step, *loop.take_step_within_memory(step), 0.0)

    def stack(self, count: int) -> Callable[[], None]:
        """Return a function that trains `count` runs as one stack for the setting's number of steps."""
        loops = [self._loop(seed) for seed in range(count)]
        stack = make_stack(shared_copy(self.loaded.model), [loop.model for loop in loops])
        names = [str(at) for at in range(count)]
        stacked = StackedLoop(stack, loops, names, self.loaded.layout, lambda: False, lambda name, error: None)

        def run() -> None:
            for _ in range(self.setting.steps):
                for error in stacked.step(loops[0].progress.step, [0.0] * count):
                    if error is not None:
                        raise error

        return run

    def _model(self, seed: int) -> Any:
        loaded = replace(self.loaded, model=shared_copy(self.loaded.model))
        return apply_method(loaded, self.method, seed).to(self.device).train()

    def _source(self, seed: int) -> ShuffledExamples:
        return ShuffledExamples(self.examples, self.setting.batch, seed, self.loaded.layout)

    def _loop(self, seed: int) -> Loop:
        execution = Execution(micro_batch=self.setting.micro_batch, threads=self.setting.threads)
        loop = Loop(
            self._model(seed), self._source(seed), self.train, Process(self.device), self.folder / str(len(self.loops)),
            identity="", seed=seed, execution=execution, hooks=Hooks(),
        )  # fmt: skip
        self.loops.append(loop)
        return loop


def _row(
    setting: Setting, count: int, times: dict[tuple[str, int], list[float]], trainers: Sequence[float]
) -> dict[str, Any]:
    examples = count * setting.steps * setting.batch
    single, stacked = (times[way, count] for way in ("single", "stacked"))
    ratios = [one / other for one, other in zip(single, stacked, strict=True)]
    return {
        "runs": count,
        "trainer": statistics.median(trainers),
        "single": examples / statistics.median(single),
        "stacked": examples / statistics.median(stacked),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio_trainer": round(examples / statistics.median(stacked) / statistics.median(trainers), 3),
    }
