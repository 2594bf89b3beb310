"""Notes on finished runs that a changed recipe no longer counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from petransfer.study.run_study import prepare_study
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.study import StudyGrid, load_grid
from petransfer.training.execution import Execution
from tests.cli.calls import call
from tests.report.made import make, recipe_of


def made(folder: Path) -> dict[str, Any]:
    """Write a study with two arms, one method and two finished seeds. Return its recipe."""
    recipe = recipe_of(
        arms=["english", "german"],
        methods=[{"name": "lora", "bits": 32}],
        seeds=[0, 1],
        task={"name": "scan", "splits": ["right"]},
        effects=[],
    )
    make(folder, recipe)
    return json.loads(recipe.model_dump_json(exclude_none=True))  # type: ignore[no-any-return]


def changed(folder: Path, content: dict[str, Any], *sets: str, **options: Any) -> StudyGrid:
    return load_grid(content, sets, options, folder)


def test_other_settings_replace_finished_runs(tmp_path: Path) -> None:
    content = made(tmp_path)
    note = changed(tmp_path, content, "train.steps=7").replaced_note
    assert note == (
        f"{tmp_path} has 4 finished runs with train.steps=100 (you asked for 7); they do not count in this study, and "
        "the new settings need new runs; use --out for a new folder to keep both studies"
    )
    one = changed(tmp_path, content, "train.steps=7", arms=["english"], seeds=[1]).replaced_note
    assert f"{tmp_path} has 1 finished run with train.steps=100 (you asked for 7); it does not count" in one


@pytest.mark.parametrize(
    "sets",
    [(), ("seeds=[0, 1, 2]",), ("arms=[english]",), ("description=new",), ("methods.0.rank=4",), ("margin=3",)],
)
def test_more_runs_and_texts_replace_no_finished_runs(tmp_path: Path, sets: tuple[str, ...]) -> None:
    content = made(tmp_path)
    assert changed(tmp_path, content, *sets).replaced_note == ""


def test_a_folder_without_a_recipe_has_no_note(tmp_path: Path) -> None:
    content = made(tmp_path / "a")
    assert changed(tmp_path / "b", content, "train.steps=7").replaced_note == ""


def test_methods_are_named_by_their_labels(tmp_path: Path) -> None:
    content = made(tmp_path)
    both = [{"name": "lora", "bits": 32}, {"name": "full", "bits": 32}]
    note = changed(tmp_path, content | {"methods": both}, "train.learning_rate.lora=0.1").replaced_note
    assert "with methods=['lora r16 32-bit'] (you asked for ['lora r16 32-bit', 'full 32-bit']); train.learn" in note


def test_other_rows_replace_finished_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"in {at},out {at}\n" for at in range(40))
    Path("train.csv").write_text(f"input,target\n{rows}")
    Path("test.csv").write_text("input,target\nin 50,out 50\nin 51,out 51\n")
    content = made(tmp_path / "other") | {
        "task": {"name": "lines", "options": {"train": "train.csv", "dev": 5, "test": "test.csv"}}
    }
    grid = load_grid(content, (), {}, tmp_path / "study")
    make(tmp_path / "study", grid.recipe)
    assert load_grid(content, (), {}, tmp_path / "study").replaced_note == ""
    Path("test.csv").write_text("input,target\nin 50,out 50\nin 52,out 52\n")
    note = load_grid(content, (), {}, tmp_path / "study").replaced_note
    assert "has 4 finished runs with other rows of train.csv or test.csv; they do not count" in note


def test_plan_prints_the_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "study")
    assert call(monkeypatch, "plan", str(tmp_path / "study"), "--set", "train.steps=7") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "study has 4 finished runs with train.steps=100 (you asked for 7)" in printed


def test_run_warns_before_it_trains_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid = changed(tmp_path, made(tmp_path), "train.steps=7")
    prepare_study(grid, Settings(Execution(), cpu=True), Scheduling())
    assert [one.levelname for one in caplog.records if one.getMessage() == grid.replaced_note] == ["WARNING"]
    caplog.clear()
    prepare_study(changed(tmp_path, made(tmp_path)), Settings(Execution(), cpu=True), Scheduling())
    assert "finished run" not in caplog.text
