"""Labels that occur only in the test rows are counted before training."""

from __future__ import annotations

from pathlib import Path

import pytest

from petransfer.data import Example, SplitData
from petransfer.study.encoded_data import untrained_labels_notes
from tests.cli.calls import call


def _rows(*targets: str) -> tuple[Example, ...]:
    return tuple(Example(index, "text", target, "all") for index, target in enumerate(targets))


def test_labels_without_a_train_row_are_counted() -> None:
    assert untrained_labels_notes(SplitData(_rows("yes", "no"), _rows("no"), _rows("yes", "no"))) == []
    (note,) = untrained_labels_notes(SplitData(_rows("yes", "no"), _rows("no"), _rows("yes", "maybe", "maybe", "x")))
    assert "2 labels" in note
    assert "3 test rows" in note
    assert "maybe, x" in note
    assert "Add train rows with these labels" in note


def test_the_plan_of_train_warns_of_labels_without_a_train_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("train.tsv").write_text("".join(f"text {n}\t{'yes' if n % 2 else 'no'}\n" for n in range(40)))
    Path("test.tsv").write_text("one\tyes\ntwo\tno\nthree\tmaybe\n")
    arguments = ["nano/english", "train.tsv", "--test", "test.tsv", "--plan", "--cpu", "--metric", "accuracy"]
    assert call(monkeypatch, "train", *arguments) == 0
    assert "warning: 1 test row has 1 label that no train row has: maybe" in capsys.readouterr().err
