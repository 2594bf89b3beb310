"""JSON files of a study with values of wrong types: an error names the file, or the file is written again."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from petransfer.effects.study_effects import update_effects
from petransfer.errors import UserError
from petransfer.pretraining.grid import check_settings, expand_pretraining
from petransfer.recipe.pretraining import PretrainRecipe
from petransfer.recipe.schema import Recipe
from petransfer.report.run_table import rows_of
from petransfer.report.sweep import groups_of, lines_of, plot, sentences
from petransfer.sharing.card import _sentences
from petransfer.study import damaged_runs
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.sweep import read_sweep
from petransfer.training.metrics_file import read_metrics
from tests.report.made import METHODS, make, recipe_of, sweep

WRONG: tuple[Any, ...] = (None, [], {}, "x", [1], {"a": 1}, True)


def small_recipe() -> Recipe:
    return recipe_of(
        arms=["english", "scratch"],
        methods=[METHODS[0]],
        task={"name": "scan", "splits": ["right"]},
        seeds=[0, 1],
        effects=["english-scratch"],
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Cell], StudyFolder]:
    recipe = small_recipe()
    cells, folder = make(tmp_path_factory.mktemp("made") / "study", recipe, examples=10)
    sweep(folder, recipe)
    update_effects(recipe, cells, folder)
    return cells, folder


def _changed(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield copies of a JSON value in which one key is missing or one value has another type, each with its path."""

    def with_value(*value: Any) -> Any:
        changed = copy.deepcopy(content)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        if value:
            inner[path[-1]] = value[0]
        else:
            del inner[path[-1]]
        return changed

    inner = content
    for key in path:
        inner = inner[key]
    if path:
        if isinstance(path[-1], str):
            yield path, with_value()
        for value in WRONG:
            yield path, with_value(value)
    else:
        yield from ((path, value) for value in WRONG)
    keys = list(inner) if isinstance(inner, dict) else range(min(1, len(inner))) if isinstance(inner, list) else ()
    for key in keys:
        yield from _changed(content, (*path, key))


def test_the_error_for_a_sweep_file_of_a_wrong_form_names_the_file(
    study: tuple[list[Cell], StudyFolder], tmp_path: Path
) -> None:
    cells, folder = study
    copied = StudyFolder(tmp_path)
    refused = []
    for _, content in _changed(json.loads((folder.path / "sweep.json").read_text())):
        (tmp_path / "sweep.json").write_text(json.dumps(content))
        try:
            groups = groups_of(cells, copied)
        except UserError as error:
            refused.append(str(error))
        else:
            lines_of(groups)
            sentences(groups)
    assert len(refused) > 100
    assert all(one.startswith(str(tmp_path / "sweep.json")) and "delete it" in one for one in refused)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        read_sweep(copied)
    assert plot(groups_of(cells, folder))


@pytest.mark.parametrize("file", ["result.json", "spec.json"])
def test_a_run_with_a_file_of_a_wrong_form_is_damaged(file: str, study: tuple[list[Cell], StudyFolder]) -> None:
    cells, folder = study
    run = folder.run(cells[0].run_id)
    text = (run.path / file).read_text()
    original = json.loads(text)
    named = 0
    try:
        for path, content in _changed(original):
            (run.path / file).write_text(json.dumps(content))
            damaged_runs.damage_of.cache_clear()
            (row,) = rows_of(cells[:1], folder)
            if row.status == "damaged":
                named += 1
                assert file in str(row.failure), path
            elif file == "result.json":
                environment = run.result().get("environment")  # type: ignore[union-attr]
                assert environment is None or set(environment) >= {"packages", "python", "device", "threads"}, path
    finally:
        (run.path / file).write_text(text)
    assert named > {"result.json": 80, "spec.json": 100}[file]


@pytest.mark.parametrize("finished", [True, False])
def test_a_failed_json_of_a_wrong_form_does_not_change_the_status(
    finished: bool, study: tuple[list[Cell], StudyFolder]
) -> None:
    cells, folder = study
    run = folder.run(cells[0].run_id)
    done = (run.path / "DONE").read_text()
    contents = [content for _, content in _changed({"error": "broken", "kind": "failure"})]
    assert len(contents) > 20
    try:
        if not finished:
            (run.path / "DONE").unlink()
        for content in contents:
            (run.path / "failed.json").write_text(json.dumps(content))
            (row,) = rows_of(cells[:1], folder)
            reason = str(content.get("error")) if isinstance(content, dict) and content else None
            assert (row.status, row.failure) == (("done", None) if finished else ("failed", reason)), content
    finally:
        (run.path / "failed.json").unlink()
        (run.path / "DONE").write_text(done)


def test_effects_of_a_wrong_form_are_computed_again(study: tuple[list[Cell], StudyFolder]) -> None:
    cells, folder = study
    recipe = small_recipe()
    path = folder.path / "effects.json"
    whole = json.loads(path.read_text())
    for key in ("sentences", "notes", "missing", "effects", "scales", "retentions"):
        for value in (None, 5, [5], "x"):
            path.write_text(json.dumps(whole | {key: value}))
            assert update_effects(recipe, cells, folder) == whole, (key, value)
    path.write_text(json.dumps({"sentences": 5}))
    with pytest.raises(UserError, match="sentences is no list"):
        _sentences(path)
    path.write_text(json.dumps(whole))


def test_the_error_for_a_pretraining_spec_of_a_wrong_form_names_the_file(tmp_path: Path) -> None:
    recipe = PretrainRecipe.model_validate(
        {
            "kind": "pretrain",
            "name": "mine",
            "arms": ["english"],
            "train": {"steps": 9},
            "corpora": {"english": {"path": "a"}},
        }
    )
    cells, folder = expand_pretraining(recipe), StudyFolder(tmp_path)
    run = folder.run(cells[0].run_id)
    (run.path / "state" / "step-000000001").mkdir(parents=True)
    for content in ({}, {"settings": 5, "corpus_sha256": "a"}, {"settings": {}, "corpus_sha256": None}):
        (run.path / "spec.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"spec\.json is damaged .*delete"):
            check_settings(cells, folder)


def test_null_in_metrics_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "seconds": 1.0, "dev_em": null}\n')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0, "seconds": 1.0}]
