"""Training steps for CUDA graphs, tested on the CPU: they give the results of the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.graphed import Options, StaticStep
from benchmarks.gpu.pretraining import Windows
from benchmarks.gpu.stacked_step import StackedStep
from petransfer.data import load_task
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.methods import apply_method
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.pretraining.span_corruption import Noise
from petransfer.recipe.run_spec import MethodSpec, TrainSpec
from petransfer.training.batches import IGNORED, ShuffledExamples
from petransfer.training.distributed import this_process
from petransfer.training.execution import Execution
from petransfer.training.graphs import pad_widths
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from petransfer.training.stacked.layers import shared_copy
from petransfer.training.stacked.stacked_loop import make_stack
from petransfer.training.state import trained_tensors

CPU = torch.device("cpu")
LORA = MethodSpec("lora", bits=32, rank=4, alpha=8.0)
TRAIN = TrainSpec(steps=10, batch_size=6, learning_rate=5e-3, max_grad_norm=0.5)
STEPS = 3


@pytest.fixture(scope="module")
def base() -> Loaded:
    return load_checkpoint(checkpoint_spec("nano/english"), 32)


@pytest.fixture(scope="module")
def examples(base: Loaded) -> Sequence[Encoded]:
    return encode_examples(load_task("scan").load("jump_around_right").train[:60], "", base.tokenizer, base.layout)


def _member(base: Loaded, seed: int) -> torch.nn.Module:
    return apply_method(replace(base, model=shared_copy(base.model)), LORA, seed)


def _of_the_loop(model: torch.nn.Module, source: ShuffledExamples, folder: Path) -> list[float]:
    loop = Loop(
        model, source, TRAIN, this_process(True), folder,
        identity="", seed=0, execution=Execution(threads=1), hooks=Hooks(),
    )  # fmt: skip
    loop.model.train()
    return [float(loop.take_step(step)[0]) for step in range(STEPS)]


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in trained_tensors(model).items()}


@pytest.mark.parametrize("micro_batch", [6, 4])
def test_a_static_step_gives_the_result_of_the_training_loop(
    micro_batch: int, base: Loaded, examples: Sequence[Encoded], tmp_path: Path
) -> None:
    source = ShuffledExamples(examples, TRAIN.batch_size, 0, base.layout)
    looped, static = _member(base, 0), _member(base, 0)
    expected = _of_the_loop(looped, source, tmp_path)
    steps = StaticStep(static, TRAIN, CPU, Options(multiple=16))
    batches = [source.batch(step, 0, 1) for step in range(STEPS)]
    found = [float(steps.step(at, batch, batch.micro_batches(micro_batch))) for at, batch in enumerate(batches)]
    assert found == pytest.approx(expected, rel=1e-5)
    for name, value in _weights(looped).items():
        assert torch.allclose(_weights(static)[name], value, atol=2e-4), (
            name
        )  # AdamW divides by gradients that are almost zero


def test_a_stacked_step_gives_the_results_of_single_training_loops(
    base: Loaded, examples: Sequence[Encoded], tmp_path: Path
) -> None:
    sources = [ShuffledExamples(examples, TRAIN.batch_size, seed, base.layout) for seed in (0, 1)]
    singles = [_member(base, seed) for seed in (0, 1)]
    expected = [
        _of_the_loop(model, source, tmp_path / str(at))
        for at, (model, source) in enumerate(zip(singles, sources, strict=True))
    ]
    stack = make_stack(shared_copy(base.model), [_member(base, seed) for seed in (0, 1)])
    steps = StackedStep(stack, TRAIN, CPU)
    found = [steps.step(at, [source.batch(at, 0, 1) for source in sources]).tolist() for at in range(STEPS)]
    assert found == [pytest.approx(pair, rel=1e-5) for pair in zip(*expected, strict=True)]
    for alone, member in zip(singles, stack.members, strict=True):
        for name, value in _weights(alone).items():
            assert torch.allclose(_weights(member)[name], value, atol=2e-4), (
                name
            )  # AdamW divides by gradients that are almost zero


def test_inputs_are_padded_with_zeros_and_labels_with_ignored_labels() -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 1]]), "labels": torch.tensor([[7, 1]])}
    padded = pad_widths(batch, 4)
    assert padded["input_ids"].tolist() == [[5, 6, 1, 0]]
    assert padded["labels"].tolist() == [[7, 1, IGNORED, IGNORED]]


def test_a_window_can_be_rebuilt_from_its_corrupted_input_and_its_target() -> None:
    """Each window lacks the declared number of tokens, in spans that sentinels mark in the input and the target."""
    noise, marks = Noise(window=32, density=0.3, mean_span=3.0), list(range(900, 950))
    source = Windows(np.arange(10, 400, dtype=np.uint16), noise, 0, marks, eos=1, start=0)
    batch = source.batch(3)
    for inputs, read, labels in zip(
        *(batch[name].tolist() for name in ("input_ids", "decoder_input_ids", "labels")), strict=True
    ):
        assert read == [0, *labels[:-1]]
        assert inputs[-1] == labels[-1] == 1
        assert len(labels) == noise.target_length
        spans = _by_mark(labels[:-1], 900)
        assert list(spans) == marks[: noise.spans]
        whole = [part for token in inputs[:-1] for part in (spans[token] if token >= 900 else [token])]
        assert whole == list(range(whole[0], whole[0] + noise.window))


def _by_mark(tokens: list[int], first: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for token in tokens:
        if token >= first:
            found[token] = []
        else:
            found[list(found)[-1]].append(token)
    return found


def test_tensors_that_have_the_padded_width_are_not_copied() -> None:
    batch = {"input_ids": torch.ones(2, 16, dtype=torch.long), "labels": torch.ones(2, 5, dtype=torch.long)}
    padded = pad_widths(batch, 16)
    assert padded["input_ids"] is batch["input_ids"]
    assert padded["labels"][:, 5:].eq(IGNORED).all()
    assert padded["labels"].shape == (2, 16)
