"""`petransfer.Study` runs a recipe and gives its results, effects and report without the command line."""

from __future__ import annotations

import doctest
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import petransfer
import petransfer.api
from petransfer import RunError, Study, UserError
from petransfer.api import write_results
from petransfer.cli.run import study_hooks
from petransfer.study.folders import Status
from petransfer.study.local_executor import Outcome
from petransfer.study.study import as_overrides, open_grid
from tests.report.made import level_of, make, recipe_of

ROWS = [
    (f"{verb} {how}", f"{how} {verb.upper()}") for verb in ("walk", "run", "look", "jump") for how in ("left", "up")
]


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a recipe with eight rows and the embedded English checkpoint."""
    data = folder / "rows.tsv"
    data.write_text("".join(f"{source}\t{target}\n" for source, target in ROWS))
    content: dict[str, Any] = {
        "name": "rows",
        "task": {"name": "lines", "options": {"train": str(data)}},
        "family": "nano",
        "arms": ["english"],
        "methods": [{"name": "lora", "rank": 2, "bits": 32}, {"name": "ia3", "bits": 32}],
        "seeds": [0],
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 2e-3},
        "effects": ["lora - ia3"],
    }
    return content | changes


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study."""
    folder = tmp_path_factory.mktemp("api")
    made = Study(recipe(folder), out=folder / "out")
    ticks: list[int] = []
    made.run(cpu=True, threads=1, workers=1, progress=lambda: ticks.append(1))
    assert ticks
    return made


def test_the_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(petransfer.api).failed == 0


def test_importing_petransfer_loads_no_torch() -> None:
    code = "import sys, petransfer; petransfer.Study; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_study_ends_with_results_effects_and_a_report(study: Study) -> None:
    results = study.results()
    assert results["status"].tolist() == ["done", "done"]
    assert results["method"].tolist() == ["lora r2 32-bit", "ia3 32-bit"]
    assert set(study.plan()["run_id"]) == {path.name for path in (study.folder / "runs").iterdir()}
    for row in results.itertuples():
        kept = json.loads((study.folder / "runs" / row.run_id / "result.json").read_text())
        assert row.test_em == kept["test"]["exact_match"]
    assert len(study.effects()) == len(json.loads((study.folder / "effects.json").read_text())["effects"])
    page = study.report()
    assert page == study.folder / "report.html"
    assert "rows" in page.read_text()
    assert "2 runs, 2 done" in repr(study)


def test_a_study_can_be_opened_by_its_folder(study: Study) -> None:
    again = Study(study.folder)
    assert again.folder == study.folder
    assert again.results().equals(study.results())
    assert again.run(cpu=True)["status"].tolist() == ["done", "done"]  # nothing is left to do


def test_the_docstring_of_plan_lists_every_status() -> None:
    assert all(f"`{status}`" in str(Study.plan.__doc__) for status in get_args(Status))


def test_overrides_change_single_keys(tmp_path: Path) -> None:
    changed = Study(recipe(tmp_path), train={"steps": 5}, seeds=range(2), margin=3)
    assert changed.plan()["steps"].tolist() == [5] * 4
    assert changed.grid.recipe.margin == 3
    assert list(as_overrides({"a": {"b": [1, 2]}})) == ["a.b=[1, 2]"]
    with pytest.raises(UserError, match=r"stepz.*did you mean 'steps'"):
        Study(recipe(tmp_path), train={"stepz": 5})
    with pytest.raises(UserError, match="unknown recipe"):
        Study("no-such-recipe")
    with pytest.raises(UserError, match="unknown kind of effect 'nope'"):
        Study(recipe(tmp_path), arms=["english", "scratch"], effects=[{"kind": "nope", "of": "english-scratch"}])


def test_failed_runs_raise_an_error_with_their_number_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no good")

    monkeypatch.setattr("petransfer.study.single_run.open_base", fail)
    broken = Study(recipe(tmp_path), out=tmp_path / "out")
    with pytest.raises(RunError, match=r"2 of 2 runs failed.*no good"):
        broken.run(cpu=True, workers=1)


def test_the_results_of_finished_runs_are_written_if_another_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(task={"name": "scan", "splits": ["right"]}, effects=["english-scratch"])
    cells, folder = make(tmp_path / "study", recipe, skip=lambda cell: cell.seed == 0)
    monkeypatch.setattr("petransfer.api.prepare_study", lambda *given: None)
    monkeypatch.setattr("petransfer.api.execute_study", lambda *given: Outcome(False, {cells[0].run_id: "no good"}, ()))
    with pytest.raises(RunError, match=r"1 of 42 runs failed.*no good"):
        Study(folder.path).run()
    assert len((folder.path / "table.csv").read_text().splitlines()) == 43
    assert json.loads((folder.path / "effects.json").read_text())["effects"]


def test_a_run_with_dev_only_is_trained_again_to_score_it_on_the_test_set(tmp_path: Path) -> None:
    content = recipe(tmp_path, methods=[{"name": "lora", "rank": 2, "bits": 32}], effects=[])
    study = Study(content, out=tmp_path / "out", train={"steps": 1})
    first = study.run(cpu=True, threads=1, workers=1, dev_only=True)
    assert first["test_em"].isna().all()
    (run,) = (tmp_path / "out" / "runs").iterdir()
    before = (run / "result.json").read_bytes()
    study.run(cpu=True, threads=1, workers=1, dev_only=True)
    assert (run / "result.json").read_bytes() == before, "the run was trained again although only dev is asked for"
    assert "not scored on the test set" in study.report().read_text()
    again = study.run(cpu=True, threads=1, workers=1)
    assert again["status"].tolist() == ["done"]
    assert again["dev_em"].equals(first["dev_em"])
    assert not again["test_em"].isna().any()
    assert (run / "adapter").is_dir()


def test_the_library_prints_nothing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("petransfer").handlers.clear()
    study.plan(), study.results(), study.effects(), study.run(cpu=True)
    message = capsys.readouterr()
    assert message.out == ""
    assert message.err == ""


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in petransfer._PUBLIC:
        assert getattr(petransfer, name).__doc__, name


def test_only_public_names_are_completed() -> None:
    """Editors and notebooks show the result of `dir` after `petransfer.`"""
    assert dir(petransfer) == sorted(["__version__", *petransfer._PUBLIC])


def test_effects_are_computed_again_after_repeated_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated run has the same id, but can have other scores on another machine."""
    recipe = recipe_of(task={"name": "scan", "splits": ["right"]}, effects=["english-scratch"])
    cells, folder = make(tmp_path / "study", recipe)
    folder.open(recipe)
    first = write_results(open_grid(folder.path))["effects"][0]["difference"]
    shutil.rmtree(folder.run(cells[0].run_id).path)
    study = Study(folder.path)
    assert study.grid.waiting

    def execute(prepared: object, tick: object) -> Outcome:
        make(folder.path, recipe, lambda cell: level_of(cell) + 0.1 * (cell.arm == "english"))
        return Outcome(False, {}, ())

    monkeypatch.setattr("petransfer.api.prepare_study", lambda *given: None)
    monkeypatch.setattr("petransfer.api.execute_study", execute)
    ending = study_hooks(study.grid)
    study.run()
    assert study.effects()["difference"][0] == pytest.approx(first + 10)
    make(folder.path, recipe)
    ending.print_end(False)
    assert study.effects()["difference"][0] == pytest.approx(first)
