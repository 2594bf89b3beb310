"""Tests on a CUDA device: the losses equal the losses on the CPU, and runs resume and continue when memory runs out.

With PETRANSFER_GPU_TESTS=cpu, these tests run on the CPU, to check the tests themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petransfer.data import Example, load_task
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.errors import Interrupted
from petransfer.evaluation.exact_match import evaluate
from petransfer.methods import apply_method, computes_in_bf16, weights_bits
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
from petransfer.training.state import trained_tensors

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
STEPS = 4
TRAIN = TrainSpec(steps=STEPS, batch_size=8, learning_rate=2e-3)


@pytest.fixture(scope="module")
def device() -> torch.device:
    return CPU if os.environ.get("PETRANSFER_GPU_TESTS") == "cpu" else torch.device("cuda")


def method(name: str, bits: Bits) -> MethodSpec:
    return MethodSpec(name, bits) if name == "full" else MethodSpec(name, bits, rank=4, alpha=8.0)


def loaded_on(device: torch.device, spec: MethodSpec) -> Loaded:
    return load_checkpoint(checkpoint_spec("nano/english"), weights_bits(spec), device=device)


def encoded(loaded: Loaded, rows: Sequence[Example]) -> Sequence[Encoded]:
    return encode_examples(rows, "", loaded.tokenizer, loaded.layout)


def some_rows(count: int = 60) -> Sequence[Example]:
    return load_task("scan").load("jump_around_right").train[:count]


def make_loop(
    model: torch.nn.Module,
    loaded: Loaded,
    spec: MethodSpec,
    device: torch.device,
    folder: Path,
    train: TrainSpec = TRAIN,
    **changes: Any,
) -> Loop:
    seed = changes.pop("seed", 0)
    examples = changes.pop("examples", None) or encoded(loaded, some_rows())
    return Loop(
        model, ShuffledExamples(examples, train.batch_size, seed, loaded.layout), train,
        Process(device), folder,
        identity="", seed=seed, execution=Execution(log_every=1, **changes.pop("execution", {})),
        hooks=changes.pop("hooks", Hooks()), autocast=computes_in_bf16(spec),
    )  # fmt: skip


def losses_of(loop: Loop) -> list[float]:
    loop.model.train()
    try:
        return [float(loop.take_step(step)[0]) for step in range(STEPS)]
    finally:
        loop.feed.close()


# Largest relative difference between a loss and the CPU's, by bits. With 8 bits, activations are quantised on a card
# and not on a CPU.
CLOSE = {32: 1e-4, 16: 0.02, 8: 0.05, 4: 0.02}


@pytest.mark.parametrize(("name", "bits"), [("lora", 32), ("lora", 16), ("lora", 8), ("lora", 4), ("full", 32)])
def test_losses_match_those_of_the_cpu_and_fall(name: str, bits: Bits, device: torch.device, tmp_path: Path) -> None:
    spec, found = method(name, bits), {}
    for place in (CPU, device):
        loaded = loaded_on(place, spec)
        model = apply_method(loaded, spec, 0).to(place)
        found[place] = losses_of(make_loop(model, loaded, spec, place, tmp_path / place.type))
    assert found[device] == pytest.approx(found[CPU], rel=CLOSE[bits])
    assert found[device][-1] < found[device][0]


@pytest.mark.parametrize("bits", [16, 32])
def test_one_forward_pass_agrees_with_generate(bits: Bits, device: torch.device, tmp_path: Path) -> None:
    """On a GPU, the training is long enough that some predictions should be right and others wrong."""
    rehearsed = device.type == "cpu"
    spec, train = method("lora", bits), TrainSpec(3 if rehearsed else 250, 16, 4e-3)
    loaded, rows = loaded_on(device, spec), some_rows(16 if rehearsed else 400)
    model = apply_method(loaded, spec, 0).to(device)
    make_loop(model, loaded, spec, device, tmp_path, train, examples=encoded(loaded, rows)).run()
    chosen = rows[: 4 if rehearsed else 200]
    found = evaluate(model, loaded, chosen, encoded(loaded, chosen), audited=len(chosen))
    assert found.disagreements == 0
    assert found.audited + found.near_ties == len(chosen)


def test_stacked_runs_have_the_last_losses_of_single_runs(device: torch.device, tmp_path: Path) -> None:
    spec = method("lora", 32)
    loaded = loaded_on(device, spec)

    def loop(seed: int, folder: Path) -> Loop:
        model = apply_method(replace(loaded, model=shared_copy(loaded.model)), spec, seed).to(device)
        return make_loop(model, loaded, spec, device, folder, seed=seed)

    singles = [loop(seed, tmp_path / f"single-{seed}") for seed in range(3)]
    expected = [losses_of(one)[-1] for one in singles]
    loops = [loop(seed, tmp_path / f"stacked-{seed}") for seed in range(3)]
    stack = make_stack(shared_copy(loaded.model), [one.model for one in loops])
    names = [str(at) for at in range(3)]
    stacked = StackedLoop(stack, loops, names, loaded.layout, lambda: False, lambda name, error: None)
    for step in range(STEPS):
        assert stacked.step(step, [0.0] * 3) == [None] * 3
    assert [one._mean_loss for one in loops] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "paged-adamw-8bit"])
def test_an_interrupted_run_resumes_and_reaches_the_same_weights(
    optimizer: Any, device: torch.device, tmp_path: Path
) -> None:
    """All weights are trained, because some of their tensors are large enough for 8-bit and paged moments."""
    spec, train = method("full", 32), replace(TRAIN, optimizer=optimizer, learning_rate=1e-4)

    def run(folder: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
        loaded, seen = loaded_on(device, spec), {"step": 0}
        hooks = Hooks(lambda step, loss, seconds: seen.update(step=step), lambda: seen["step"] == stop_at)
        loop = make_loop(apply_method(loaded, spec, 0), loaded, spec, device, folder, train, hooks=hooks)
        loop.run()
        return {key: value.detach().cpu() for key, value in trained_tensors(loop.model).items()}

    expected = run(tmp_path / "whole", None)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", 2)
    found = run(tmp_path / "parts", None)
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=2e-5), key


@pytest.fixture
def little_memory(device: torch.device) -> Iterator[None]:
    """Limit the process to 200 MB of GPU memory beyond the memory that is already reserved. On a CPU, do nothing."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 200e6) / total)
    yield
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_running_out_of_memory_reduces_the_micro_batch(
    little_memory: None, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, train = method("lora", 32), replace(TRAIN, batch_size=16 if device.type == "cpu" else 512, steps=2)
    loaded = loaded_on(device, spec)
    model = apply_method(loaded, spec, 0).to(device)
    loop = make_loop(model, loaded, spec, device, tmp_path, train, execution={"micro_batch": train.batch_size})
    if device.type == "cpu":
        accumulate = loop.accumulate

        def fails_once(*given: Any) -> torch.Tensor:
            if loop.progress.micro_batch == train.batch_size:
                raise torch.OutOfMemoryError("out of memory")
            return accumulate(*given)

        monkeypatch.setattr(loop, "accumulate", fails_once)
    done = loop.run()
    assert done.out_of_memory >= 1
    assert done.micro_batch < train.batch_size
    assert done.step == 2
