"""Aggregate training rate of K runs as one stack beside the same K runs one after another, in one process."""

from __future__ import annotations

import functools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from petransfer.bench.profile import shares
from petransfer.checkpoints.encoding import Encoded, encode_examples
from petransfer.checkpoints.load import Loaded, load
from petransfer.checkpoints.registry import checkpoint_spec
from petransfer.methods import APPLY
from petransfer.methods.stacked import share
from petransfer.recipe.spec import Bits, MethodSpec, TrainSpec
from petransfer.study.run import accelerator_for
from petransfer.tasks import load_task
from petransfer.train.batches import ShuffledExamples
from petransfer.train.execution import Execution
from petransfer.train.loop import Hooks, Loop
from petransfer.train.stacked import StackedLoop, make_stack

# Where the time of a step goes, by the operations that are named so; the first that fits counts.
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
    """What is trained: LoRA on SCAN. steps: timed, of each run in each round."""

    checkpoint: str = "nano/english"
    bits: Bits = 32
    rank: int = 16
    batch: int = 32
    micro_batch: int = 0
    threads: int = 0
    rounds: int = 5
    steps: int = 3
    split: str = "around_right"


def measure(setting: Setting, counts: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Examples per second of both ways for each K, medians over the rounds, in which the ways take turns."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(setting, max(counts), Path(folder))
        stacks = {count: bench.stack(count) for count in counts}
        times: dict[tuple[str, int], list[float]] = {}
        for turn in range(setting.rounds + 1):
            for count in counts:
                ways: dict[str, Callable[[], None]] = {
                    "single": functools.partial(bench.one_by_one, count),
                    "stacked": stacks[count],
                }
                for way in sorted(ways, reverse=bool(turn % 2)):  # neither way always has the warmer machine
                    taken = _seconds(ways[way])
                    if turn:  # the first round warms up
                        times.setdefault((way, count), []).append(taken)
            say(f"round {turn} of {setting.rounds}")
        profile = {
            "single": shares(lambda: bench.one_by_one(1), PARTS),
            f"stacked {max(counts)}": shares(stacks[max(counts)], PARTS),
        }
    return {
        "setting": asdict(setting),
        "hardware": hardware(),
        "rows": [_row(setting, count, times) for count in counts],
        "profile": profile,
    }


def hardware() -> dict[str, Any]:
    """The device and the CPU's own name."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    threads = torch.get_num_threads()
    cpu = names[0] if names else platform.machine()
    return {"card": card, "cpu": cpu, "cores": os.cpu_count(), "threads": threads, "torch": str(torch.__version__)}


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


class _Bench:
    """One loaded base, and loops of runs on it that differ in their seed."""

    def __init__(self, setting: Setting, most: int, folder: Path) -> None:
        self.setting, self.folder, self.made = setting, folder, 0
        self.accelerator: Accelerator = accelerator_for("no", not torch.cuda.is_available())
        spec = checkpoint_spec(setting.checkpoint)
        self.loaded: Loaded = load(spec, setting.bits, device=self.accelerator.device)
        examples = load_task("scan").load(setting.split).train[:4000]
        self.examples: Sequence[Encoded] = encode_examples(examples, "", self.loaded.tokenizer, self.loaded.layout)
        self.singles = [self._loop(seed) for seed in range(most)]

    def one_by_one(self, count: int) -> None:
        """So many runs, one after the other."""
        for loop in self.singles[:count]:
            for _ in range(self.setting.steps):
                step = loop.progress.step
                loop.note(step, *loop._step_with_less_memory(step), 0.0)

    def stack(self, count: int) -> Callable[[], None]:
        """Takes the steps of so many runs as one stack."""
        loops = [self._loop(seed) for seed in range(count)]
        stack = make_stack(share(self.loaded.model), [loop.model for loop in loops])
        names = [str(at) for at in range(count)]
        stacked = StackedLoop(stack, loops, names, self.loaded.layout, lambda: False, lambda name, error: None)

        def run() -> None:
            for _ in range(self.setting.steps):
                for error in stacked.step(loops[0].progress.step, [0.0] * count):
                    if error is not None:
                        raise error

        return run

    def _loop(self, seed: int) -> Loop:
        setting = self.setting
        method = MethodSpec("lora", setting.bits, setting.rank, 2.0 * setting.rank)
        loaded = replace(self.loaded, model=share(self.loaded.model))
        model = APPLY["lora"](loaded, method, seed).to(self.accelerator.device).train()
        source = ShuffledExamples(self.examples, setting.batch, seed, loaded.layout)
        self.made += 1
        train = TrainSpec(10**6, setting.batch, 1e-3)
        execution = Execution(micro_batch=setting.micro_batch, threads=setting.threads)
        place = self.folder / str(self.made)
        return Loop(
            model, source, train, self.accelerator, place,
            identity="", seed=seed, execution=execution, hooks=Hooks(),
        )  # fmt: skip


def _row(setting: Setting, count: int, times: dict[tuple[str, int], list[float]]) -> dict[str, Any]:
    examples = count * setting.steps * setting.batch
    single, stacked = (times[way, count] for way in ("single", "stacked"))
    ratios = [one / other for one, other in zip(single, stacked, strict=True)]
    return {
        "runs": count,
        "single": examples / statistics.median(single),
        "stacked": examples / statistics.median(stacked),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def _seconds(run: Callable[[], None]) -> float:
    _wait()
    started = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
