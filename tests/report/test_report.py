"""Tables and pictures from run folders that are written by hand here, so that their figures are known."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from petransfer.cli import main
from petransfer.recipe.load import load_recipe
from petransfer.report import groups, plots, tables
from petransfer.study.grid import Cell, expand
from petransfer.study.ledger import StudyFolder


@pytest.fixture
def study(tmp_path: Path) -> tuple[list[Cell], StudyFolder]:
    """lora-scan's English and scratch arms with three seeds, of which scratch's last is not done."""
    recipe = load_recipe("lora-scan", ["arms=[english, scratch]", "seeds=[0, 1, 2]", "effects=[english-scratch]"], {})
    folder = StudyFolder(tmp_path / "study")
    folder.open(recipe)
    cells = expand(recipe)
    for cell in cells:
        run = folder.run(cell.run_id)
        run.path.mkdir()
        points = [(500, 20.0 + cell.seed), (1000, 90.0 + cell.seed)]
        lines = [json.dumps({"step": step, "loss": 1.0, "seconds": 9.0, "dev_em": em}) for step, em in points]
        (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        run.write_json("spec.json", cell.spec.as_dict())
        if cell.arm == "scratch" and cell.seed == 2:
            continue
        correct = np.arange(100) < (60 if cell.arm == "english" else 10) + cell.seed
        table = {
            "index": np.arange(100),
            "category": ["all"] * 100,
            "correct": correct,
            "log_prob": -1.0 * np.arange(100),
            "tokens": np.full(100, 10),
        }
        pyarrow.parquet.write_table(pyarrow.table(table), run.path / "examples.parquet")
        measured = {"exact_match": float(100 * correct.mean()), "log_prob_per_token": -4.95, "disagreements": 0}
        run.finish({"steps": 1000, "dev": measured, "test": measured, "trained_parameters": 7})
    return cells, folder


def test_a_group_is_its_seeds(study: tuple[list[Cell], StudyFolder]) -> None:
    found = groups.groups_of(tables.rows_of(*study))
    assert groups.table_of(found) == [
        ("opposite_right", "english", "lora r16 new-embeddings 32-bit", "3", "61.0 (60.0 to 62.0)",
         "61.0 (60.0 to 62.0)", "-4.950 (-4.950 to -4.950)"),
        ("opposite_right", "scratch", "full 32-bit", "2 of 3", "10.5 (10.0 to 11.0)", "10.5 (10.0 to 11.0)",
         "-4.950 (-4.950 to -4.950)"),
    ]  # fmt: skip
    assert r"2 of 3 & 10.5 (10.0 to 11.0)" in groups.latex(found)
    assert r"opposite\_right & english" in groups.latex(found)
    assert r"dev EM \%" in groups.latex(found)


def test_a_curve_is_the_mean_of_its_seeds(study: tuple[list[Cell], StudyFolder]) -> None:
    cells, folder = study
    (axes,) = plots.learning_curves(groups.groups_of(tables.rows_of(cells, folder)), folder).axes
    thick = [line for line in axes.lines if line.get_linewidth() > 1]
    assert [line.get_label() for line in thick] == ["english", "scratch"]
    assert len(axes.lines) == 2 + 6  # a run under way has a curve too
    for line in thick:
        assert list(line.get_xdata()) == [500, 1000]
        assert list(line.get_ydata()) == pytest.approx([21, 91])


def test_every_seed_is_in_the_picture(study: tuple[list[Cell], StudyFolder]) -> None:
    test, log_prob = plots.by_arm(groups.groups_of(tables.rows_of(*study))).axes
    dots = [list(line.get_ydata()) for line in test.lines if line.get_marker() == "o"]
    assert dots == [pytest.approx([60, 61, 62]), pytest.approx([10, 11])]
    assert log_prob.get_ylabel() == "log p per token, nats"


def test_what_quantised_weights_weigh_is_said(study: tuple[list[Cell], StudyFolder]) -> None:
    row = tables.rows_of(*study)[0]
    assert tables.weight_lines([row]) == []
    weights = {
        "bytes": {"bfloat16": 1_000_000, "nf4": 3_000_000},
        "share": {"bfloat16": 25.0, "nf4": 75.0},
        "wide": {"norm": {}, "embeddings": {"bytes": 9, "why": "rows are looked up"}},
        "quantisation": {"loss_at_16_bits": 2.0, "loss": 2.01},
    }
    (line,) = tables.weight_lines([replace(row, weights=weights)] * 2)
    assert "4.0 MB of weights, 25.0 % bfloat16, 75.0 % nf4; wide: norm, embeddings (rows are looked up)" in line
    assert "2.000 at 16 bits, 2.010 so" in line


def _report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["petransfer", "report", str(folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def _hashes(folder: Path) -> dict[str, str]:
    made = [path for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts and path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


def test_a_report_made_again_is_the_same(
    study: tuple[list[Cell], StudyFolder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study[1].path
    assert _report(folder, monkeypatch) == 0
    said = capsys.readouterr()
    first = _hashes(folder)
    names = {"table.csv", "table.md", "table.tex", "effects.json", "report.html"}
    pictures = {f"{name}.{kind}" for name in ("learning-curves", "by-arm", "effects") for kind in ("svg", "png")}
    assert set(first) == names | pictures | {"recipe.yaml"}
    for path in folder.rglob("*"):
        if path.is_file() and path.name in names | pictures:
            path.unlink()
    assert _report(folder, monkeypatch) == 0
    assert _hashes(folder) == first
    assert "2 of 3" in said.out
    assert "+50.5 points" in said.out
    assert "+50.5 points" in (folder / "table.md").read_text()
    ElementTree.parse(folder / "plots" / "by-arm.svg")


def test_what_is_no_finished_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _report(tmp_path, monkeypatch) == 2
    assert "no recipe.yaml" in capsys.readouterr().err
    StudyFolder(tmp_path / "empty").open(load_recipe("smoke", [], {}))
    assert _report(tmp_path / "empty", monkeypatch) == 2
    assert "no run of" in capsys.readouterr().err
