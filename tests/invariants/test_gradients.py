"""Invariant 1: the micro-batches of a batch give the gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from petransfer.data import load_task
from petransfer.data.encoding import encode_examples
from petransfer.methods import apply_method
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.batches import ShuffledExamples, collate
from petransfer.training.distributed import this_process
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from tests.conftest import FULL, LORA

SPEC = TrainSpec(steps=4, batch_size=12, learning_rate=1e-3, max_grad_norm=0.0)


def _gradients(
    folder: Path, method: object, micro_batch: int, state: Path, budget: int = 0
) -> tuple[dict[str, torch.Tensor], Loop]:
    loaded = load_checkpoint(checkpoint_spec(str(folder)), 32)
    examples = encode_examples(load_task("scan").load("length").train[:100], "", loaded.tokenizer, loaded.layout)
    for module in loaded.model.modules():  # no dropout, because it depends on the shape of its input
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = apply_method(loaded, method, 0)  # type: ignore[attr-defined]
    source = ShuffledExamples(examples, SPEC.batch_size, 0, loaded.layout)
    loop = Loop(
        model, source, SPEC, this_process(cpu=True), state, identity="x", seed=0,
        execution=Execution(micro_batch=micro_batch), hooks=Hooks(),
    )  # fmt: skip
    found: dict[str, torch.Tensor] = {}

    def keep(step: int) -> None:
        if step == 1:  # the gradient of LoRA's A is zero in the first step
            found.update(
                {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
            )

    loop.checks.before_update = keep  # type: ignore[method-assign]
    loop.progress.token_budget = budget
    loop.take_step(0)
    loop.take_step(1)
    return found, loop


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    kind: str, method: object, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(kind)
    whole, loop = _gradients(folder, method, 12, tmp_path / "whole")
    assert whole
    assert any(bool(value.abs().max() > 1e-6) for value in whole.values())
    assert len(loop.source.batch(1, 0, 1).micro_batches(12, 100)) > 2
    for size, budget in ((5, 0), (1, 0), (12, 100)):
        cut, _ = _gradients(folder, method, size, tmp_path / f"{size}-{budget}", budget)
        assert cut.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(
                cut[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert loop.progress.micro_batch == 12


def test_the_loss_is_the_mean_over_the_batch_s_target_tokens(tiny_t5: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    examples = encode_examples(load_task("scan").load("length").train[:50], "", loaded.tokenizer, loaded.layout)
    source = ShuffledExamples(examples, 24, 0, loaded.layout)
    model = apply_method(loaded, LORA, 0).eval()
    padded = collate(source.batch(0, 0, 1).examples, loaded.layout)
    expected = model(**padded).loss  # transformers computes the mean over all labels that are not ignored
    loop = Loop(
        model, source, SPEC, this_process(cpu=True), tmp_path, identity="x", seed=0,
        execution=Execution(micro_batch=5), hooks=Hooks(),
    )  # fmt: skip
    loss, _ = loop.take_step(0)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_two_processes_divide_a_batch_without_missing_or_repeated_examples(tiny_t5: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    examples = encode_examples(load_task("scan").load("length").train[:50], "", loaded.tokenizer, loaded.layout)
    source = ShuffledExamples(examples, 24, 0, loaded.layout)
    whole = source.batch(3, 0, 1)
    parts = [source.batch(3, process, 2) for process in (0, 1)]
    assert sorted([*parts[0].examples, *parts[1].examples], key=repr) == sorted(whole.examples, key=repr)
    assert parts[0].target_tokens == parts[1].target_tokens == whole.target_tokens


def test_running_out_of_memory_reduces_the_micro_batch_and_keeps_the_gradient(
    tiny_spec: Callable[..., object], tiny_t5: Path, tmp_path: Path
) -> None:
    whole, _ = _gradients(tiny_t5, LORA, 12, tmp_path / "whole")
    loaded = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    examples = encode_examples(load_task("scan").load("length").train[:100], "", loaded.tokenizer, loaded.layout)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = apply_method(loaded, LORA, 0)
    loop = Loop(
        model, ShuffledExamples(examples, 12, 0, loaded.layout), SPEC, this_process(cpu=True), tmp_path / "small",
        identity="x", seed=0, execution=Execution(micro_batch=12), hooks=Hooks(),
    )  # fmt: skip
    plain = loop.loss_function

    def scarce(wrapped: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(batch["labels"]) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return plain(wrapped, batch)

    loop.loss_function = scarce
    loop.progress.token_budget = 10**6  # more tokens than the batch has
    found: dict[str, torch.Tensor] = {}
    loop.checks.before_update = lambda step: found.update(  # type: ignore[method-assign]
        {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    )
    for step in (0, 1):
        loop.take_step_within_memory(step)
    assert loop.progress.micro_batch == 3
    assert loop.progress.token_budget == 250_000
    assert loop.progress.out_of_memory == 2
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
