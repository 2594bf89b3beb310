"""The everyday tasks: distinct and repeatable rows, correct targets, and the table of results."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from benchmarks.everyday import SETTINGS, compare, table
from benchmarks.everyday_tasks import REAL_TASKS, SMILES_ROWS, TASKS, rows_of, smiles_rows

RESULTS = Path(__file__).parents[2] / "results" / "bench"


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_distinct_and_repeatable(name: str) -> None:
    rows = TASKS[name].examples()
    assert rows == TASKS[name].examples() != TASKS[name].examples(seed=1)
    assert len({text for text, _ in rows}) == len(rows) == TASKS[name].rows
    assert all(text.strip() == text and target.strip() == target and target for text, target in rows)


def test_targets_are_plausible() -> None:
    assert all(date.fromisoformat(target).year >= 1990 for _, target in TASKS["dates"].examples())
    assert all(json.loads(target)["name"] in text for text, target in TASKS["json"].examples())
    factors = {"km": 1000, "m": 100, "kg": 1000, "h": 60, "min": 60, "l": 1000}
    units = [(*text.split(), *target.split()) for text, target in TASKS["units"].examples()]
    assert {large for _, large, *_ in units} == factors.keys()
    for value, large, _, small, converted, unit in units:
        assert (int(converted), unit) == (factors[large] * int(value), small)
    for text, target in smiles_rows(50):
        assert text != target
    assert len(dict(rows_of("smiles"))) == SMILES_ROWS, "two rows have the same input"


def _run(dev: float, test: float) -> dict[str, Any]:
    return {"dev": dev, "test": test, "steps": 9, "best_step": 5, "stop_reason": "max_steps", "seconds": 1.0}


def test_the_best_of_the_sweep_is_chosen_on_dev() -> None:
    runs = {"default": _run(80, 60), "full": _run(90, 50), "lora-x3": _run(70, 99)}
    assert compare({"runs": runs}) == {"best": "full", "share_of_best": {"dev": 88.9, "test": 120.0}}
    assert compare({"runs": {"default": _run(80, 60), "full": _run(80, 70)}})["best"] == "default"
    assert compare({"runs": {"default": _run(0, 0), "full": _run(0, 0)}})["share_of_best"]["dev"] is None


def test_the_table_has_one_row_per_task() -> None:
    runs = {"default": _run(80, 60), "full": _run(90, 50)}
    content = {"tasks": {"dates": {"rows": 500, "runs": runs, **compare({"runs": runs})}}}
    assert table(content).splitlines()[2] == (
        "| dates | 500 | 80.0, 60.0 | 9 (5) | largest number of steps | 1 | full | full: 90.0, 50.0 | 89 % | 120 % |"
    )


def test_the_table_in_the_results_equals_the_recorded_file() -> None:
    content = json.loads((RESULTS / "everyday-cpu.json").read_text())
    assert "benchmarks.everyday" in content["command"]
    assert content["machine"]["processor"]
    for name, task in content["tasks"].items():
        assert task["rows"] == (SMILES_ROWS if name in REAL_TASKS else TASKS[name].rows)
        assert set(task["runs"]) <= set(SETTINGS)
        assert compare(task) == {key: task[key] for key in ("best", "share_of_best")}
    assert table(content) in (RESULTS / "README.md").read_text(encoding="utf-8")
