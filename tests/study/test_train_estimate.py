"""The expected time of a training run: estimated from the number of weights, or measured without evaluations on dev."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import RunSpec
from petransfer.study import single_run, train_estimate
from petransfer.study.train_estimate import TimeEstimate, TokenCounts

TOKENS = TokenCounts(inputs=10.0, targets=6.0, longest=(12, 8), counted=True)


@pytest.mark.parametrize(
    "weights",
    [{"float32": 4000}, {"bfloat16": 2000}, {"int8": 1000, "scales": 400}, {"nf4": 500, "scales": 70}],
)
@pytest.mark.parametrize(("method", "operations"), [("lora", 4), ("full", 6)])
def test_a_step_is_estimated_from_the_number_of_weights(
    weights: dict[str, int], method: str, operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_estimate, "_product_rate", lambda cpu: 1e6)
    fit: Any = SimpleNamespace(memory=SimpleNamespace(weights=weights), step_spec=SimpleNamespace(device="cpu"))
    spec: Any = SimpleNamespace(
        method=SimpleNamespace(name=method),
        train=SimpleNamespace(batch_size=4),
        checkpoint=checkpoint_spec("nano/english"),
    )
    # a batch has 4 * 16 tokens, and each of the 1000 weights is used for half of them
    seconds = operations * 1000 * 32 / (train_estimate.REACHED * 1e6)
    assert train_estimate._estimated_step(spec, TOKENS, fit, cpu=True) == pytest.approx(seconds)


def test_measured_steps_are_not_followed_by_evaluations_on_dev(
    tiny_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations: list[int] = []

    def dev_curve(*_: Any) -> Callable[[int], dict[str, Any]]:
        return lambda micro_batch: evaluations.append(micro_batch) or {}  # type: ignore[func-returns-value]

    monkeypatch.setattr(single_run, "dev_curve", dev_curve)
    assert train_estimate._measured_step(tiny_spec(), cpu=True) > 0
    assert evaluations == []


def test_the_expected_time_names_the_number_of_training_runs(tiny_spec: Callable[..., RunSpec]) -> None:
    found, train = TimeEstimate(step=1.0, evaluations=2.0, measured=True), tiny_spec(steps=58).train
    assert found.line(train).startswith("time: about 60 s if nothing else runs")
    assert found.line(train, 6).startswith("time: about 60 s per training run (6 runs) if nothing else runs")
