"""Predict the memory of equal training steps only once, because a prediction takes most of the time of its tests."""

from __future__ import annotations

from typing import Any

import pytest

from petransfer.memory.step_memory import Memory, StepSpec, simulate

_KNOWN: dict[Any, Memory] = {}


def remember_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the planner simulate a training step only if no test with this function has simulated it before."""
    monkeypatch.setattr("petransfer.memory.planner.simulate", _remembered)


def _remembered(
    config: Any, name: str, step_spec: StepSpec, own_head: bool, new_tokens: tuple[int, ...] = ()
) -> Memory:
    step = (config.to_json_string(), name, step_spec, own_head, new_tokens)
    if step not in _KNOWN:
        _KNOWN[step] = simulate(config, name, step_spec, own_head, new_tokens)
    return _KNOWN[step]
