"""The estimated time of a training depends on the number of weights and not on their dtype."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from petransfer.models.registry import checkpoint_spec
from petransfer.study import train_estimate
from petransfer.study.train_estimate import Tokens

TOKENS = Tokens(inputs=10.0, targets=6.0, longest=(12, 8), counted=True)


@pytest.mark.parametrize(
    "weights",
    [{"float32": 4000}, {"bfloat16": 2000}, {"int8": 1000, "scales": 400}, {"nf4": 500, "scales": 70}],
)
@pytest.mark.parametrize(("method", "operations"), [("lora", 4), ("full", 6)])
def test_a_step_is_estimated_from_the_number_of_weights(
    weights: dict[str, int], method: str, operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_estimate, "_product_rate", lambda cpu: 1e6)
    fit: Any = SimpleNamespace(memory=SimpleNamespace(weights=weights), demand=SimpleNamespace(device="cpu"))
    spec: Any = SimpleNamespace(
        method=SimpleNamespace(name=method),
        train=SimpleNamespace(batch_size=4),
        checkpoint=checkpoint_spec("nano/english"),
    )
    # a batch has 4 * 16 tokens, and each of the 1000 weights is used for half of them
    seconds = operations * 1000 * 32 / (train_estimate.REACHED * 1e6)
    assert train_estimate._estimated_step(spec, TOKENS, fit, cpu=True) == pytest.approx(seconds)
