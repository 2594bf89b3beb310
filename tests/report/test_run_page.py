"""The page of a single run: scores, curves, predictions, labels and commands for the next steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from petransfer.report.study_report import write_report
from petransfer.study.durations import duration
from petransfer.study.folders import RunFolder
from petransfer.study.study import open_grid
from tests.report.made import draw_nothing, make, recipe_of, remove_test_score
from tests.report.test_page import Checked


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The run of a study with one run, as `petransfer train` writes it."""
    recipe = recipe_of(
        name="pairs", task={"name": "scan", "splits": ["right"]}, arms=["english"],
        methods=[{"name": "lora", "bits": 32}], seeds=[0], effects=[],
    )  # fmt: skip
    (cell,), folder = make(tmp_path / "mine", recipe)
    found = folder.run(cell.run_id)
    (found.path / "adapter").mkdir()
    result = found.result()
    assert result
    result |= {"seconds": 577.3, "parameters": 1_800_000}
    result["dev"]["examples"], result["test"]["examples"] = 50, 100
    found.write_json("result.json", result)
    lines = [{"step": step, "loss": 1 / step, "seconds": 1.0, "dev_em": 9.0 * step} for step in range(1, 11)]
    (found.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return found


def text_of(run: RunFolder) -> str:
    text = write_report(open_grid(run.path.parents[1])).path.read_text(encoding="utf-8")
    Checked(text)
    return text


def test_a_study_with_a_single_run_has_a_page_about_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petransfer.report.plot_files.save_all", lambda *given: None)
    text = text_of(run)
    for name, value in (("dev exact match", "90.0 %"), ("test exact match", "60.0 %"),
                        ("trained and scored in", "9 min 37 s"),
                        ("trained parameters", "90,000 (5.0 % of all)"), ("steps", "100")):  # fmt: skip
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert text.count('<svg class="chart"') == 2
    assert 'aria-label="training loss, nats over optimiser steps"' in text
    assert '<th scope="row">dev</th><td class="number">50</td><td class="number">90.0</td>' in text
    assert "Texts were generated for 8 test examples, drawn at random; wrong texts: " in text
    assert "WALK <mark>&lt;RIGHT&gt;</mark>" in text
    place = f"results/mine/runs/{run.path.name}/adapter"
    assert f"The adapter is in {place}." in text
    assert f"petransfer predict {place} " in text
    assert "petransfer run --recipe results/mine/recipe.yaml --out results/mine" in text
    assert "Confusion matrix" not in text
    assert "The run is finished." in text


def test_the_page_states_how_often_memory_ran_out(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    result = run.result()
    assert result
    run.write_json("result.json", result | {"out_of_memory": 1})
    assert "Memory ran out 1 time; the micro-batch" in text_of(run)


def test_the_page_of_a_run_that_was_not_scored_on_the_test_set_says_so(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    remove_test_score(run)
    text = text_of(run)
    assert "The run is finished. 1 finished run was not scored on the test set" in text
    assert "test exact match" not in text
    assert "Sample predictions" not in text


def test_predicted_labels_have_a_confusion_matrix(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "no")] * 3 + [("no", "perhaps")]
    count = len(pairs)
    table = {
        "index": list(range(count)), "category": ["all"] * count, "correct": [a == b for a, b in pairs],
        "log_prob": [-1.0] * count, "tokens": [1] * count, "prediction": [b for _, b in pairs], "input": ["x"] * count,
        "target": [a for a, _ in pairs],
    }  # fmt: skip
    result = run.result() or {}
    result["test"]["exact_match"] = 75.0
    run.write_json("result.json", result)
    pyarrow.parquet.write_table(pyarrow.table(table), run.path / "examples.parquet")
    result = json.loads((run.path / "result.json").read_text())
    result["test"]["exact_match"] = 75.0  # as in examples.parquet; a run with contradicting files counts as damaged
    run.write_json("result.json", result)
    text = text_of(run)
    assert "of 12 test examples" in text
    rows = {
        name: re.findall(r'--em:(\d+)">(\d+)<', text.split(f'<th scope="row">{name}</th>')[1].split("</tr>")[0])
        for name in ("yes", "no")
    }
    assert rows["yes"] == [("25", "2"), ("75", "6"), ("0", "0")]  # no, yes, other
    assert rows["no"] == [("75", "3"), ("0", "0"), ("25", "1")]


def write_labels(run: RunFolder, pairs: list[tuple[str | None, str]]) -> None:
    """Write a run's examples.parquet with the targets and the predicted labels. Only row 0 has a generated text."""
    count = len(pairs)
    table: dict[str, list[Any]] = {
        "index": list(range(count)), "category": ["all"] * count, "correct": [a == b for a, b in pairs],
        "log_prob": [-1.0] * count, "tokens": [1] * count, "prediction": [pairs[0][1], *[None] * (count - 1)],
        "input": ["x", *[None] * (count - 1)], "target": [a for a, _ in pairs], "answer": [b for _, b in pairs],
    }  # fmt: skip
    result = json.loads((run.path / "result.json").read_text())
    result["test"]["exact_match"] = 100 * sum(table["correct"]) / count
    pyarrow.parquet.write_table(pyarrow.table(table), run.path / "examples.parquet")
    run.write_json("result.json", result)


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The run of a study with the metric accuracy."""
    draw_nothing(monkeypatch)
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.tsv").write_text("".join(f"text {n}\t{'yes' if n % 2 else 'no'}\n" for n in range(40)))
    options = {"train": str(tmp_path / "rows.tsv")}
    recipe = recipe_of(
        task={"name": "lines", "options": options, "metrics": ["exact_match", "accuracy"]}, arms=["english"],
        methods=[{"name": "lora", "bits": 32}], seeds=[0], effects=[],
    )  # fmt: skip
    (cell,), folder = make(tmp_path / "mine", recipe, scores=lambda _: {"accuracy": 50.0})
    return folder.run(cell.run_id)


def test_the_confusion_matrix_counts_the_predicted_label_of_every_test_example(labelled: RunFolder) -> None:
    labels = [f"label_{n:02}" for n in range(50)]
    write_labels(labelled, [*zip(labels, labels, strict=True), ("label_00", "label_49"), ("label_01", "unknown")])
    text = text_of(labelled)
    assert "columns the predicted ones, of 52 test examples" in text
    matrix = text.split('aria-label="Confusion matrix"')[1].split("</table>")[0]
    assert '<div class="wide" tabindex="0" role="region" aria-label="Confusion matrix"><table class="heat">' in text
    assert matrix.count('<th scope="col">') == 51  # and the column `other`
    assert '<th scope="col">label_<wbr>00</th>' in matrix
    first = re.findall(r'--em:(\d+)">(\d+)<', matrix.split('<th scope="row">')[1])
    assert (first[0], first[49], first[50]) == (("50", "1"), ("50", "1"), ("0", "0"))
    assert re.findall(r'--em:(\d+)">(\d+)<', matrix.split('<th scope="row">')[2])[50] == ("50", "1")


def test_the_targets_of_older_files_and_many_labels_give_no_confusion_matrix(labelled: RunFolder) -> None:
    write_labels(labelled, [("yes", "yes"), *[(None, "no")] * 9])
    assert "Confusion matrix" not in text_of(labelled)
    write_labels(labelled, [(f"label {n}", "label 0") for n in range(51)])
    assert "Confusion matrix" not in text_of(labelled)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (577.3, "9 min 37 s"), (7500, "2 h 5 min")]
)
def test_durations_are_in_seconds_minutes_or_hours(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_folder_names_with_special_characters_are_quoted_in_commands(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    study = run.path.parents[1].rename(run.path.parents[2] / "my $(touch x) study")
    moved = RunFolder(study / "runs" / run.path.name)
    quoted = "&#39;results/my $(touch x) study"
    assert f"petransfer run --recipe {quoted}/recipe.yaml&#39; --out {quoted}&#39;" in text_of(moved)
    assert f"petransfer predict {quoted}/runs/{run.path.name}/adapter&#39; " in text_of(moved)
    monkeypatch.chdir(study)
    text = write_report(open_grid(Path())).path.read_text(encoding="utf-8")
    assert f"--out {quoted}&#39;" in text  # the path `.` does not contain the name of the folder
