"""Fixtures that make predictions quicker: shallow models, and predictions that are made only once."""

from __future__ import annotations

import pytest

from tests.remembered_predictions import remember_predictions
from tests.tiny_models import limit_t5_layers


@pytest.fixture
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit every T5 of the registry to one layer, because a prediction takes time for every layer."""
    limit_t5_layers(monkeypatch, 1)


@pytest.fixture
def remembered_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the planner simulate equal training steps only once."""
    remember_predictions(monkeypatch)
