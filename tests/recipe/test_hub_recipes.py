"""The recipes for hub checkpoints: plan them unchanged, and run them with small random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from petransfer.data import SplitData
from petransfer.recipe.loading import load_recipe, shipped_recipes
from petransfer.study import encoded_data
from petransfer.study.folders import RunFolder
from petransfer.study.grid import expand
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training.execution import Execution
from tests.cli.calls import call

OFFICIAL = Path(__file__).parents[3] / "shared" / "data"
RECIPES = ("lora-scan-t5-base", "lora-cogs-t5-base", "qlora-scan-t5-3b", "orhan-base", "orhan-3b", "orhan-marian")


def _read(name: str) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(shipped_recipes()[name].read_text())
    return recipe


@pytest.mark.parametrize("name", RECIPES)
def test_the_plan_of_a_recipe_has_all_runs_and_enough_seeds(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plan", "--recipe", name, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    recipe = _read(name)
    trained_whole = "scratch" in recipe["arms"]
    cells = len(recipe["methods"]) * (len(recipe["arms"]) - trained_whole) + trained_whole
    random_twice = "random" in recipe["arms"] and any(method["name"] == "full" for method in recipe["methods"])
    expected = (cells - random_twice) * len(recipe["seeds"]) * len(recipe["task"]["splits"])
    assert len(plan["runs"]) == expected
    if not name.startswith("orhan"):  # those use the seeds of the paper, which are too few
        assert not any("cannot decide" in note for note in plan.get("notes", []))


@pytest.mark.parametrize("name", ["lora-scan-t5-base", "lora-cogs-t5-base", "qlora-scan-t5-3b", "orhan-base"])
def test_a_recipe_runs_with_random_weights(
    name: str, tmp_path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train the tiny T5 as the pretrained arm, and one control arm, for three steps on few rows of one split.

    The methods and their learning rates come from the recipe.
    """
    recipe = _read(name)
    if recipe["task"]["name"] == "cogs" and not OFFICIAL.exists():
        pytest.skip("needs COGS's official files")
    recipe["family"] = {"name": "mine", "base": "english", "arms": {"english": str(tiny_t5)}}
    control = "scratch" if "scratch" in recipe["arms"] else "random"
    recipe |= {"arms": ["english", control], "effects": [f"english-{control}"], "seeds": [0]}
    rates = recipe["train"]["learning_rate"]
    kept = {key: rates[key] for key in ("lora", "full", *recipe["arms"]) if key in rates}
    recipe["train"] = {"steps": 3, "batch_size": 4, "learning_rate": kept}
    recipe["task"] = {**recipe["task"], "splits": ["jump_around_right"], "options": {"dev_size": 20}}
    data_dir = None
    if recipe["task"]["name"] == "cogs":
        recipe["task"] = {"name": "cogs", "splits": ["test"]}
        data_dir = OFFICIAL / "cogs"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe))
    whole = encoded_data.task_data

    def few(*given: Any) -> SplitData:
        data = whole(*given)
        return replace(data, train=data.train[:200], dev=data.dev[:4], test=data.test[:8])

    monkeypatch.setattr(encoded_data, "task_data", few)
    cells = expand(load_recipe(str(path), [], {}))
    assert {cell.arm for cell in cells} == {"english", control}
    for cell in cells:
        folder = RunFolder(tmp_path / cell.run_id)
        result = run_one(cell.spec, folder, Settings(Execution(threads=1), data_dir, cpu=True, force=True))
        assert folder.done
        assert result["test"]["examples"] == 8
        assert {"adapter", "model"} & {made.name for made in folder.path.iterdir()}
