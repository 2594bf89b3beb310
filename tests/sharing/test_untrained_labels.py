"""On other data, an adapter also chooses among the labels of its training, and other labels are reported."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import petransfer
from petransfer.data import Example, SplitData
from petransfer.errors import UserError
from petransfer.sharing import task_data
from tests.sharing.conftest import ROWS, WORDS, call, contents, refused, sealed, write


def test_labels_that_the_adapter_was_not_trained_on_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tuple(Example(n, "text", label, "all") for n, label in enumerate("012"))
    monkeypatch.setattr(task_data, "data_of", lambda *_: SplitData(rows, rows, rows, ("0", "1", "2")))

    def message(metrics: tuple[str, ...], *labels: str) -> str:
        caplog.clear()
        bundle: Any = SimpleNamespace(
            spec=SimpleNamespace(task=SimpleNamespace(metrics=metrics)), label="mine", provenance={}
        )
        task_data.warn_of_untrained_labels(bundle, labels, "new.csv", None)
        return caplog.text

    found = message(("exact_match", "accuracy"), "0", "1.0", "2.0")
    assert "new.csv has 2 labels that mine was not trained on: 1.0, 2.0 (trained on: 0, 1, 2)" in found
    assert message(("exact_match", "accuracy"), "0", "2") == ""
    assert message(("exact_match",), "x") == ""

    def gone(*_: Any) -> SplitData:
        raise UserError("the data are gone")

    monkeypatch.setattr(task_data, "data_of", gone)
    assert message(("accuracy",), "x") == ""


@pytest.fixture
def one_label(here: Path) -> str:
    """The name of a file in which every row has the target `gehen`, in a folder without the training data."""
    Path("pairs.tsv").unlink()
    Path("one.tsv").write_text("".join(f"{source}\tgehen\n" for source, _ in ROWS), encoding="utf-8")
    return "one.tsv"


def test_an_adapter_chooses_among_the_labels_of_its_training(run: Path, packed: Path, one_label: str) -> None:
    assert json.loads(contents(packed)["petransfer.json"])["labels"] == sorted(WORDS.values())
    with_data = petransfer.Adapter.load(run, device="cpu")
    found = with_data.evaluate(one_label)
    assert found.metrics["accuracy"] < 100
    assert petransfer.Adapter.load(packed, device="cpu").evaluate(one_label).metrics == found.metrics
    with_data.merge("merged")
    assert petransfer.Adapter.load("merged", device="cpu").evaluate(one_label).metrics["accuracy"] < 100


def test_a_metric_of_labels_is_refused_if_only_one_label_is_known(
    packed: Path, one_label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = contents(packed)
    provenance = json.loads(old["petransfer.json"])
    del provenance["labels"]  # as in adapters of older versions
    older = write(Path("older.petransfer.zip"), sealed(old | {"petransfer.json": json.dumps(provenance).encode()}))
    arguments = ("eval", str(older), "--data", one_label, "--cpu")
    message = refused(capsys, *arguments, "--metric", "accuracy")
    assert "accuracy needs at least two labels, but every row of one.tsv has the target 'gehen'" in message
    assert call(*arguments, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["metrics"] == {}
