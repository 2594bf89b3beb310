"""Methods are paired by seed, whichever seeds are done, and a control that two effects share is one object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petransfer.effects.contrasts import collect, demand, update_effects
from petransfer.effects.criteria import CRITERIA
from petransfer.effects.ratios import Two
from petransfer.report.prose import of_effect
from petransfer.report.run_groups import effects_table
from petransfer.study.grid import expand
from tests.report.made import make, recipe_of


def test_methods_are_paired_by_seed(tmp_path: Path) -> None:
    recipe = recipe_of(effects=["4-bit - lora 32-bit"])
    skip = {"lora r16 4-bit": {0, 2}, "lora r16 32-bit": {5}}
    cells, folder = make(
        tmp_path,
        recipe,
        lambda cell: 0.1 * (cell.seed + 1) - (0.02 if "4-bit" in cell.method else 0),
        skip=lambda cell: cell.seed in skip.get(cell.method, set()),
    )
    contrasts = collect(recipe, cells, folder).contrasts
    assert len(contrasts) == 2 * 2  # splits, and the arms that have both methods
    for one in contrasts:
        assert one.paired
        assert one.left.mean(1).tolist() == pytest.approx([0.18, 0.38, 0.48])
        assert one.right.mean(1).tolist() == pytest.approx([0.2, 0.4, 0.5])
        assert one.left_out == 3


def test_a_control_that_two_effects_share_is_one_object(tmp_path: Path) -> None:
    recipe = recipe_of()
    cells, folder = make(tmp_path, recipe)
    for two in collect(recipe, cells, folder).retentions:
        assert isinstance(two, Two)
        groups = two.groups
        assert groups[1] is groups[3]
        assert groups[0] is not groups[2]


@pytest.mark.parametrize(("reached", "named"), [(40.0, True), (44.0, False), (None, False)])
def test_a_side_that_has_not_learnt_is_named(tmp_path: Path, reached: float | None, named: bool) -> None:
    """Beside others at 92.5 % on dev: below half of that a verdict speaks of training, wherever it is said."""
    recipe = recipe_of()
    cells, folder = make(tmp_path, recipe)
    for cell in cells:
        if cell.arm == "english" and "4-bit" in cell.method:
            path = folder.run(cell.run_id).path / "result.json"
            result = json.loads(path.read_text())
            result["dev"] = {} if reached is None else {"exact_match": reached + cell.seed}
            path.write_text(json.dumps(result))
    found = update_effects(recipe, cells, folder)
    short = [(one["name"], one["method"], one["arm"]) for one in found["effects"] if one["dev"]]
    under, within = ("english-scratch", "lora r16 4-bit", ""), ("4-bit - lora 32-bit", "", "english")
    assert sorted(short) == sorted([under, within] * 2 * named)
    words = "on dev 42.5 and 92.5 %: the first has not learnt what both were trained on"
    assert sum(words in sentence for sentence in found["sentences"]) == 4 * named
    cells_of_table = [line[5] for line in effects_table(found)]
    assert sum(cell.endswith(" (dev: 42.5 against 92.5)") for cell in cells_of_table) == 4 * named
    pages = [of_effect(one, CRITERIA["exact_match"])[0] for one in found["effects"]]
    assert sum("On dev 42.5 and 92.5" in said for said in pages) == 4 * named
    assert "nan" not in json.dumps(found).lower()


def test_the_declared_family_is_counted_before_a_run() -> None:
    recipe = recipe_of()
    found = demand(recipe, expand(recipe))
    # two splits: two contrasts of arms under three methods, one of methods in two arms; retention is no test
    assert (found.unpaired, found.paired, found.tests) == (12, 4, 16)
    assert found.seeds == 6
    assert "16 effects are judged together (Holm): that takes 10 seeds, and 6" in found.line
