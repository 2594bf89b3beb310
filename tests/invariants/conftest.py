"""Specs of runs that can be stacked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petransfer.recipe.loading import validate
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.grid import expand, resolve
from tests.invariants.stacks import Make, members


@pytest.fixture(name="make", scope="module")
def make_spec(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Make:
    """A function that makes specs with 30 rows of different lengths."""
    verbs = ("walk", "run", "look", "jump", "turn", "see")
    times = {"once": 1, "twice": 2, "thrice and then some more times": 3, "four times": 4, "often": 9}
    rows = [f"{verb} {word}\t{' '.join([verb] * count)}\n" for verb in verbs for word, count in times.items()]
    file = tmp_path_factory.mktemp("rows") / "rows.tsv"
    file.write_text("".join(rows))

    def one(folder: Path | None = None, **changes: Any) -> RunSpec:
        task = {"name": "lines", "options": {"train": str(file), "dev": 5, "test": 6}}
        content = {
            "name": "x", "task": task, "family": {"name": "t", "arms": {"english": str(folder or tiny_t5)}},
            "arms": ["english"], "methods": [{"name": "lora", "rank": 4, "bits": 32}], "seeds": [0],
            "train": {"steps": 4, "batch_size": 10, "learning_rate": 2e-3},
        }  # fmt: skip
        (cell,) = expand(resolve(validate(content, "x")))
        return replace(cell.spec, **changes)

    return one


@pytest.fixture(scope="module")
def dropping(make: Make) -> list[RunSpec]:
    """Specs of three runs with dropout in the model and in the adapters."""
    spec = make()
    return members(replace(spec, method=replace(spec.method, dropout=0.2)))
