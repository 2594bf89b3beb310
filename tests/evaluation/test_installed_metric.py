"""A recipe can name a metric of another installed package, and errors of this metric are reported."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from petransfer.errors import UserError
from petransfer.evaluation.run_metrics import compute_metrics
from petransfer.models.loading import Loaded
from petransfer.recipe.metrics import HEADINGS, METRICS
from petransfer.recipe.run_spec import TaskSpec
from tests.sharing.conftest import call

MODULE = """
from petransfer.recipe.metrics import Metric

def score(predictions, targets):
    return {"letters": 100 * sum(len(a) == len(b) for a, b in zip(predictions, targets)) / len(targets)}

METRIC = Metric("letters", {"letters": "same length %"}, score, share_of_answers=True)
RETURNED = {"wrong": float("nan")}
WRONG = Metric("wrong", {"wrong": "wrong"}, lambda predictions, targets: RETURNED)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that declares two metrics by entry points."""
    folder = tmp_path / "site"
    info = folder / "letter_metrics-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "letter_metrics.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: letter-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[petransfer.metrics]\nletters = letter_metrics:METRIC\nwrong = letter_metrics:WRONG\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "letter_metrics", raising=False)
    for name in ("_installed", "_loaded"):
        monkeypatch.delitem(METRICS.__dict__, name, raising=False)
    yield tmp_path
    for name in ("_installed", "_loaded"):
        METRICS.__dict__.pop(name, None)


def test_a_recipe_can_use_an_installed_metric(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(installed)
    monkeypatch.setenv("PETRANSFER_CACHE", str(installed / "cache"))
    rows = "".join(f"to walk {at}\tgehen\nto run {at}\trennen\n" for at in range(15))
    (installed / "rows.tsv").write_text(rows, encoding="utf-8")
    recipe = {
        "name": "own-metric", "task": {"name": "lines", "options": {"train": "rows.tsv"}, "metrics": ["letters"]},
        "family": "nano", "arms": ["english"], "methods": [{"name": "lora", "rank": 2, "bits": 32}],
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 0.001},
    }  # fmt: skip
    (installed / "own.yaml").write_text(json.dumps(recipe))
    assert call("run", "--recipe", "own.yaml", "--cpu", "--out", "study") == 0
    (result,) = (installed / "study" / "runs").glob("*/result.json")
    assert 0 <= json.loads(result.read_text())["test"]["letters"] <= 100
    assert HEADINGS["letters"] == "same length %"
    recipe["task"]["metrics"] = ["leters"]
    (installed / "own.yaml").write_text(json.dumps(recipe))
    capsys.readouterr()
    assert call("plan", "--recipe", "own.yaml") == 2
    assert "did you mean 'letters'?" in capsys.readouterr().err


def test_a_metric_that_returns_no_finite_figure_is_an_error(
    installed: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petransfer.data import Example, SplitData
    from petransfer.data.encoding import encode_examples
    from petransfer.models.loading import load_checkpoint
    from petransfer.models.registry import checkpoint_spec

    loaded: Loaded = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    rows = [Example(0, "to walk", "gehen", "all")]
    encoded = encode_examples(rows, "", loaded.tokenizer, loaded.layout)
    task = TaskSpec("lines", "held-out", metrics=("wrong",))
    wrong: tuple[dict[str, Any], ...] = (
        {"wrong": float("nan")}, {"wrong": float("inf")}, {"wrong": None}, {"wrong": "many"}, {"other": 1.0}, {},
    )  # fmt: skip
    for returned in wrong:
        monkeypatch.setattr(importlib.import_module("letter_metrics"), "RETURNED", returned)
        message = f"the metric wrong returned {returned}, not a finite number for each of wrong"
        with pytest.raises(UserError, match=re.escape(message)):
            compute_metrics(loaded.model, loaded, task, SplitData(rows, rows, rows), "test", encoded)
