"""The run ids of every shipped recipe and of every run in results/ do not change.

Results are found by run id. After a change of an id, petransfer would not find the run folders of users. `run_ids.json`
contains the committed ids. After an intended change of a recipe, update it: `python -m tests.recipe.test_run_ids`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petransfer.recipe.loading import load_any_recipe, load_recipe, shipped_recipes
from petransfer.recipe.run_spec import RunSpec
from petransfer.recipe.schema import Recipe
from petransfer.study.grid import expand

SNAPSHOT = Path(__file__).with_name("run_ids.json")
RESULTS = Path(__file__).parents[2] / "results"


def ids(recipe: str) -> str:
    """Return the run ids of a shipped recipe, in the order of its grid."""
    return " ".join(cell.run_id for cell in expand(load_recipe(recipe)))


def current() -> dict[str, dict[str, str]]:
    """Return the content of the snapshot: the run ids of the shipped studies and of the runs in results/."""
    studies = [name for name in shipped_recipes() if isinstance(load_any_recipe(name), Recipe)]
    runs: dict[str, list[str]] = {}
    for path in sorted(RESULTS.glob("*/runs/*/spec.json")):
        runs.setdefault(path.parts[-4], []).append(RunSpec.from_dict(json.loads(path.read_text())).run_id)
    return {
        "recipes": {name: ids(name) for name in studies},
        "results": {study: " ".join(found) for study, found in runs.items()},
    }


KEPT = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.is_file() else {"recipes": {}, "results": {}}


@pytest.mark.parametrize("name", KEPT["recipes"])
def test_a_shipped_recipe_has_the_same_run_ids(name: str) -> None:
    assert ids(name) == KEPT["recipes"][name]


def test_runs_in_results_have_the_ids_of_their_folders() -> None:
    if not RESULTS.is_dir():
        pytest.skip("no results/ in this checkout")
    for study, found in current()["results"].items():
        assert found.split() == sorted(path.parent.name for path in RESULTS.glob(f"{study}/runs/*/spec.json"))
        if study in KEPT["results"]:
            assert set(KEPT["results"][study].split()) <= set(found.split())


def test_the_snapshot_contains_every_shipped_recipe() -> None:
    assert KEPT["recipes"].keys() == current()["recipes"].keys()


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(current(), indent=1) + "\n")
