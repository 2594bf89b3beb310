"""The rate's schedule, the optimiser's groups, and the checks that a run makes of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petransfer.errors import RunError
from petransfer.recipe.spec import TrainSpec
from petransfer.train.checks import SelfChecks
from petransfer.train.loop import learning_rate_factor, make_optimizer
from petransfer.train.memory import is_out_of_memory
from petransfer.train.metrics import MetricsFile, read_metrics

SPEC = TrainSpec(steps=100, batch_size=8, learning_rate=1e-3, warmup=0.1)


def test_the_rate_rises_and_falls_to_the_final_share() -> None:
    factors = [learning_rate_factor(SPEC, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(1 / 90)
    assert learning_rate_factor(replace(SPEC, final=0.05), 99) == pytest.approx(0.05 + 0.95 / 90)
    assert learning_rate_factor(replace(SPEC, schedule="cosine"), 55) == pytest.approx(0.5)
    assert learning_rate_factor(replace(SPEC, schedule="constant"), 99) == 1.0


@given(
    steps=st.integers(1, 500), warmup=st.floats(0, 0.99), final=st.floats(0, 1),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)  # fmt: skip
def test_the_rate_is_never_negative_nor_above_its_peak(steps: int, warmup: float, final: float, schedule: str) -> None:
    spec = TrainSpec(steps, 1, 1e-3, warmup, schedule, final)  # type: ignore[arg-type]
    for step in range(steps):
        assert 0 < learning_rate_factor(spec, step) <= 1 or (final == 0 and step == steps - 1)


def test_rms_scaling_gives_each_tensor_a_rate_and_a_decay_of_its_own_size() -> None:
    model = torch.nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.zero_()
    spec = replace(SPEC, rate_scaling="rms", weight_decay=0.01)
    weight, bias = make_optimizer(model, spec).param_groups
    assert (weight["scale"], weight["weight_decay"]) == (pytest.approx(0.5), pytest.approx(0.02))
    assert bias["scale"] == pytest.approx(1e-3)


def test_a_tensor_without_a_gradient_is_an_error() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "unused": torch.nn.Linear(2, 2)})
    checks = SelfChecks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        model["used"](torch.ones(1, 2)).sum().backward()
        checks.before_update(step)
        optimizer.step()
        checks.after_step(step, 0.0)
    with pytest.raises(RunError, match=r"2 of 4 trained tensors got no gradient.*unused"):
        checks.after_step(2, 0.0)


def test_a_tensor_that_does_not_move_is_an_error() -> None:
    model = torch.nn.Linear(2, 2)
    checks = SelfChecks(model)
    for step in range(2):
        model(torch.ones(1, 2)).sum().backward()
        checks.before_update(step)
        checks.after_step(step, 0.0)
    with pytest.raises(RunError, match="2 of 2 trained tensors did not move"):
        checks.after_step(2, 0.0)


def test_training_nothing_is_an_error() -> None:
    with pytest.raises(RunError, match="nothing is trained"):
        SelfChecks(torch.nn.Linear(2, 2).requires_grad_(False))


def test_memory_errors_are_told_from_others() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_metrics_are_cut_back_and_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1})
    length = metrics.size()
    metrics.append({"step": 2})
    metrics.path.open("a").write('{"step": 3')
    assert [line["step"] for line in read_metrics(metrics.path)] == [1, 2]
    metrics.cut(length)
    assert [line["step"] for line in read_metrics(metrics.path)] == [1]
