"""Methods are paired by seed, whichever seeds are done, and a control that two effects share is one object."""

from __future__ import annotations

from pathlib import Path

import pytest

from petransfer.effects.contrasts import collect, demand
from petransfer.effects.ratios import Two
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


def test_the_declared_family_is_counted_before_a_run() -> None:
    recipe = recipe_of()
    found = demand(recipe, expand(recipe))
    # two splits: two contrasts of arms under three methods, one of methods in two arms; retention is no test
    assert (found.unpaired, found.paired, found.tests) == (12, 4, 16)
    assert found.seeds == 6
    assert "16 effects are judged together (Holm): that takes 10 seeds, and 6" in found.line
