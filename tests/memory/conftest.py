"""Fixtures that make predictions quicker: shallow models, and predictions that are made only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from petransfer.memory.step_memory import Demand, Memory, simulate
from tests.tiny_models import limit_t5_layers


@pytest.fixture
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit every T5 of the registry to one layer, because a prediction takes time for every layer."""
    limit_t5_layers(monkeypatch, 1)


@pytest.fixture(scope="session")
def remembered() -> Callable[..., Memory]:
    """A function like `simulate` that simulates equal training steps only once."""
    known: dict[Any, Memory] = {}

    def predict(config: Any, name: str, demand: Demand, own_head: bool, new_tokens: tuple[int, ...] = ()) -> Memory:
        step = (config.to_json_string(), name, demand, own_head, new_tokens)
        if step not in known:
            known[step] = simulate(config, name, demand, own_head, new_tokens)
        return known[step]

    return predict


@pytest.fixture
def remembered_predictions(remembered: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the planner simulate equal training steps only once, because simulations take most of its time."""
    monkeypatch.setattr("petransfer.memory.planner.simulate", remembered)
