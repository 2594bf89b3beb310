"""The learning rate that a sweep chooses, with run folders that the tests write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from petransfer.recipe.loading import validate
from petransfer.recipe.schema import Recipe
from petransfer.report.sweep import lines_of, sentences, snippet
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, expand
from petransfer.study.sweep import sweep_cells, sweep_folder, update_sweep

# Result of a run: (exact match on dev in %, log-probability per target token), or None if the run is not done.
Outcome = Callable[[Cell], tuple[float, float] | None]


def recipe_of(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "swept",
        "task": {"name": "scan", "splits": ["add_jump"]},
        "arms": ["english", "german", "protein", "scratch"],
        "methods": [{"name": "lora", "bits": 32}, {"name": "lora", "bits": 4}],
        "train": {"steps": 100, "learning_rate": {"lora": 1e-3, "scratch": 1e-2}},
    }
    return validate(content | changes, "here")


def swept(
    path: Path, recipe: Recipe, outcome: Outcome, rates: tuple[float, ...] = (), steps: int = 0
) -> dict[str, Any]:
    """Return the content of sweep.json after a sweep by factors of 0.5, 1 and 2, or with the learning rates `rates`."""
    own, study = expand(recipe), StudyFolder(path)
    cells = sweep_cells(own, rates, (0.5, 1, 2), steps)
    for cell in cells:
        run = sweep_folder(study).run(cell.run_id)
        found = outcome(cell)
        if found and not run.done:
            run.path.mkdir(parents=True)
            run.write_json("spec.json", cell.spec.as_dict())
            dev = {"exact_match": found[0], "log_prob_per_token": found[1], "disagreements": 0}
            run.finish({"dev": dev, "steps": 100, "trained_parameters": 1000})
    content = update_sweep(recipe, own, cells, study)
    assert content == json.loads((path / "sweep.json").read_text())
    return content


def group(content: dict[str, Any], arm: str, method: str = "lora r16 32-bit") -> dict[str, Any]:
    (found,) = [one for one in content["groups"] if (one["arm"], one["method"]) == (arm, method)]
    return found


def rate(cell: Cell) -> float:
    return cell.spec.train.learning_rate


@pytest.mark.parametrize(
    ("figures", "chosen", "edge"),
    [
        ([(50, -1), (90, -2), (80, -1)], 1e-3, None),
        ([(90, -1), (90, -2), (80, -1)], 5e-4, "lowest"),
        ([(90, -2), (90, -2), (90, -1)], 2e-3, "highest"),  # the loss decides between equal exact matches
        ([(90, -1), (90, -1), (90, -1)], 5e-4, "lowest"),
        ([(90, float("-inf")), (90, -9), (10, -1)], 1e-3, None),
        ([(0, -3), None, (0, -1)], None, None),  # no learning rate is chosen before all runs are done
    ],
)
def test_the_highest_exact_match_on_dev_is_chosen_then_the_lowest_loss(
    figures: list[tuple[float, float] | None], chosen: float | None, edge: str | None, tmp_path: Path
) -> None:
    recipe = recipe_of(arms=["english"], methods=[{"name": "lora", "bits": 32}])
    content = swept(tmp_path, recipe, lambda cell: figures[[5e-4, 1e-3, 2e-3].index(rate(cell))])
    found = group(content, "english")
    assert (found["chosen"], found["edge"]) == (chosen, edge)
    assert lines_of([found])[0][3] == (f"{chosen:g}" if chosen else "")
    assert any("outside this range" in line for line in sentences([found])) == bool(edge)
    assert any("not finished" in line for line in sentences([found])) == (chosen is None)
    assert "NaN" not in (tmp_path / "sweep.json").read_text()


def test_seeds_and_splits_are_averaged(tmp_path: Path) -> None:
    recipe = recipe_of(arms=["english"], task={"name": "scan", "splits": ["add_jump", "right"]}, seeds=[0, 1])

    def outcome(cell: Cell) -> tuple[float, float]:
        lucky = (rate(cell), cell.seed, cell.split) == (2e-3, 0, "right")
        return (100.0 if lucky else 80.0 if rate(cell) == 2e-3 else 86.0), -1.0

    found = group(swept(tmp_path, recipe, outcome), "english")
    assert [one["dev_em"] for one in found["rates"]] == pytest.approx([86, 86, 85])
    assert [len(one["runs"]) for one in found["rates"]] == [4, 4, 4]


def test_the_printed_learning_rates_can_be_put_into_the_recipe(tmp_path: Path) -> None:
    """With these learning rates in the recipe, each arm and method gets the learning rate chosen for it."""
    best = {
        ("english", 32): 2e-3, ("german", 32): 1e-3, ("protein", 32): 5e-4,
        ("english", 4): 1e-3, ("german", 4): 1e-3, ("protein", 4): 2e-3,
    }  # fmt: skip

    def outcome(cell: Cell) -> tuple[float, float]:
        wanted = 2e-2 if cell.arm == "scratch" else best[cell.arm, cell.spec.method.bits]
        return (90.0 if rate(cell) == wanted else 50.0), -1.0

    content = swept(tmp_path, recipe_of(), outcome)
    rates = yaml.safe_load(snippet(content))["learning_rate"]
    assert rates == {
        "lora": 1e-3,
        "english lora r16 32-bit": 2e-3,
        "protein lora r16 32-bit": 5e-4,
        "protein lora r16 4-bit": 2e-3,
        "full": 2e-2,
    }
    for cell in expand(recipe_of(train={"steps": 100, "learning_rate": rates})):
        assert rate(cell) == (2e-2 if cell.arm == "scratch" else best[cell.arm, cell.spec.method.bits])


def test_a_method_with_a_unique_name_is_listed_without_its_settings(tmp_path: Path) -> None:
    recipe = recipe_of(methods=[{"name": "lora", "bits": 32}], arms=["english", "german", "protein"])
    best = {"english": 1e-3, "german": 1e-3, "protein": 2e-3}
    content = swept(tmp_path, recipe, lambda cell: (90.0 if rate(cell) == best[cell.arm] else 1.0, -1.0))
    assert content["learning_rate"] == {"lora": 1e-3, "protein lora": 2e-3}


def test_arms_that_were_not_swept_keep_the_learning_rates_of_the_recipe(tmp_path: Path) -> None:
    """The printed section replaces the section of the recipe, so it must also include these arms."""
    methods = [{"name": "lora", "bits": 32}]
    own, study = expand(recipe_of(methods=methods)), StudyFolder(tmp_path)
    asked = sweep_cells([cell for cell in own if cell.arm == "protein"], (), (1, 4), 0)
    for cell in asked:
        run = sweep_folder(study).run(cell.run_id)
        run.path.mkdir(parents=True)
        run.write_json("spec.json", cell.spec.as_dict())
        dev = {"exact_match": 1000 * rate(cell), "log_prob_per_token": -1.0, "disagreements": 0}
        run.finish({"dev": dev, "steps": 100, "trained_parameters": 1000})
    content = update_sweep(recipe_of(methods=methods), own, asked, study)
    assert [one["arm"] for one in content["groups"]] == ["protein"]
    assert content["learning_rate"] == {"lora": 1e-3, "protein lora": 4e-3, "full": 1e-2}


def test_a_learning_rate_does_not_apply_to_a_method_with_a_longer_label(tmp_path: Path) -> None:
    methods = [{"name": "lora", "bits": 8}, {"name": "lora", "bits": 8, "keep_wide": ["wo"]}]
    recipe = recipe_of(methods=methods, arms=["english", "german"])
    best = {("english", False): 5e-4}  # all others: 2e-3

    def wanted(cell: Cell) -> float:
        return best.get((cell.arm, bool(cell.spec.method.keep_wide)), 2e-3)

    content = swept(tmp_path, recipe, lambda cell: (90.0 if rate(cell) == wanted(cell) else 1.0, -1.0))
    train = recipe.train.model_copy(update={"learning_rate": content["learning_rate"]})
    for cell in expand(recipe.model_copy(update={"train": train})):
        assert rate(cell) == wanted(cell), (cell.arm, cell.method)


def test_earlier_runs_widen_the_range_only_with_the_same_seeds_and_steps(tmp_path: Path) -> None:
    recipe = recipe_of(arms=["english"], methods=[{"name": "lora", "bits": 32}])
    both = recipe.model_copy(update={"seeds": [0, 1]})
    swept(tmp_path, recipe, lambda cell: (100.0, -1.0), rates=(8e-3,))
    swept(tmp_path, recipe, lambda cell: (100.0, -1.0), rates=(9e-3,), steps=50)
    content = swept(tmp_path, both, lambda cell: (90.0, -1.0))
    assert [one["rate"] for one in group(content, "english")["rates"]] == [
        5e-4,
        1e-3,
        2e-3,
    ]  # 8e-3 has one seed
    content = swept(tmp_path, recipe, lambda cell: (90.0, -1.0))
    found = group(content, "english")
    assert [one["rate"] for one in found["rates"]] == [5e-4, 1e-3, 2e-3, 8e-3]
    assert (found["chosen"], found["edge"]) == (8e-3, "highest")


def test_factor_3_of_rate_0_1_and_rate_0_3_give_the_same_runs() -> None:
    own = expand(recipe_of(arms=["english"], train={"steps": 1, "learning_rate": 0.1}))
    by_factor, by_rate = sweep_cells(own, (), (3,), 0), sweep_cells(own, (0.3,), (), 0)
    assert [cell.run_id for cell in by_factor] == [cell.run_id for cell in by_rate]
