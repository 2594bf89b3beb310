"""The everyday tasks: rows that differ, targets that are right, the same rows from the same seed."""

from __future__ import annotations

import json
from datetime import date

import pytest

from benchmarks.everyday_tasks import TASKS, smiles_rows


@pytest.mark.parametrize("name", TASKS)
def test_rows_differ_and_are_repeatable(name: str) -> None:
    rows = TASKS[name].examples()
    assert rows == TASKS[name].examples() != TASKS[name].examples(seed=1)
    assert len({text for text, _ in rows}) == len(rows) == TASKS[name].rows
    assert all(text.strip() == text and target.strip() == target and target for text, target in rows)


def test_targets_are_right() -> None:
    assert all(date.fromisoformat(target).year >= 1990 for _, target in TASKS["dates"].examples())
    assert all(json.loads(target)["name"] in text for text, target in TASKS["json"].examples())
    assert ("5 km in m", "5000 m") in TASKS["units"].examples() or len(TASKS["units"].examples()) == 1000
    for text, target in TASKS["units"].examples():
        if " h in " in text:
            assert int(target.split()[0]) == 60 * int(text.split()[0])
    for text, target in smiles_rows(50):
        assert text != target
