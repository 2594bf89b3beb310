"""`eval --metric` shows metrics beside exact match, for the base, the adapter and the merged model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import petransfer
from petransfer.sharing.scoring import Scores
from tests.sharing.conftest import ROWS, call, refused


@pytest.fixture
def few(tmp_path: Path) -> str:
    """The path of a file with four rows."""
    path = tmp_path / "few.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in ROWS[:4]), encoding="utf-8")
    return str(path)


def test_eval_shows_other_metrics_beside_exact_match(run: Path, few: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("eval", str(run), "--data", few, "--metric", "token_f1", "--base", "--cpu")
    assert call(*arguments, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["label"].partition(":")[0] for row in rows] == ["base", str(run), "merged"]
    texts = [source for source, _ in ROWS[:4]]
    found = petransfer.Adapter.load(run, device="cpu").predict(texts, 16)
    right = 100 * sum(text == target for text, (_, target) in zip(found, ROWS, strict=False)) / 4
    assert rows[1]["metrics"]["token_f1"] == rows[1]["exact_match"] == right  # equal, because each target is one word
    assert call(*arguments) == 0
    message = capsys.readouterr().out
    assert all(word in message for word in ("exact match %", "token F1 %", "base: nano/english", "merged: "))


def test_a_file_of_one_row_is_scored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.tsv"
    path.write_text("to laugh\tlachen\n", encoding="utf-8")
    assert call("eval", str(run), "--data", str(path), "--cpu") == 0
    message = capsys.readouterr()
    assert "one.tsv, 1 example\n" in "\n".join(line.strip() for line in message.out.splitlines()) + "\n"
    assert "agreement with first" not in message.out  # there is only one adapter


def test_an_unknown_metric_is_refused_with_a_suggestion(
    run: Path, few: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("eval", str(run), "--data", few, "--cpu", "--metric")
    assert "did you mean 'token_f1'" in refused(capsys, *arguments, "bleu, token_f")


def test_a_score_that_is_not_finite_is_null_in_json(
    run: Path, few: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scores(*_: Any) -> list[Scores]:
        return [Scores("mine", "few", 4, 50.0, -math.inf, None, 100.0, 4, 0, (0,), 100.0, None, {"rouge": 1.5})]

    monkeypatch.setattr("petransfer.sharing.scoring.side_by_side", scores)
    assert call("eval", str(run), "--data", few, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (row["log_prob_per_token"], row["exact_match"], row["metrics"]) == (None, 50.0, {"rouge": 1.5})
