"""The timings side by side, on a step or two: that every side runs, agrees with the other and is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petransfer.bench import sides, startup
from tests.fit.test_bench import _bench


def test_a_step_beside_trainer_has_the_same_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = ("--recipe", "smoke", "--batch", "4", "--steps", "1", "--repeats", "1", "--out", str(out))
    assert _bench(monkeypatch, "train", *small) == 0
    (row,) = json.loads(out.read_text())
    assert row["gradient_difference"] < 1e-3
    assert set(row["examples_per_second"]) == {"petransfer", "trainer", "trainer, grouped by length"}
    assert all(rate > 0 for rate in row["examples_per_second"].values())
    assert 0 < row["share_of_matmul_rate"]["petransfer"] < 1
    assert _bench(monkeypatch, "train", "--recipe", "smoke", "--arm", "englsh") == 2


def test_scoring_beside_generate_agrees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = ("--recipe", "smoke", "--train-steps", "3", "--examples", "6", "--repeats", "1", "--out", str(out))
    assert _bench(monkeypatch, "eval", *small) == 0
    (row,) = json.loads(out.read_text())
    assert (row["examples"], row["disagreements"]) == (6, 0)


def test_the_sides_take_turns_and_the_median_counts() -> None:
    order: list[str] = []
    values = iter([1.0, 10.0, 20.0, 2.0, 30.0, 3.0])
    turns = {name: lambda name=name: order.append(name) or next(values) for name in ("a", "b")}
    found = sides.alternating(turns, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert sides.medians(found) == {"a": 2.0, "b": 10.0}


def test_start_up_is_measured_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "COMMANDS", {"nothing": ("-c", "pass")})
    (row,) = startup.rows(1)
    assert row["processor"] > 0
    assert row["median"] == row["least"] > 0
