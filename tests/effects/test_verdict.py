"""Verdicts on contrasts that are made to hold, to be reversed, to be equal, to be unclear and to have no room."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from petransfer.effects.contrasts import collect, update_effects
from petransfer.effects.sentences import of_effect
from petransfer.effects.verdict import Contrast, judge
from petransfer.errors import UserError
from petransfer.recipe.loading import validate
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, expand

EXAMPLES = 200


def contrast(left: float, right: float, seeds: int = 6, spread: float = 0.0, name: str = "a-b") -> Contrast:
    """Arms whose seeds have exactly these levels of EM, give or take `spread`."""

    def group(level: float) -> np.ndarray:
        levels = level + spread * np.linspace(-1, 1, seeds)
        return np.array([np.arange(EXAMPLES) < round(EXAMPLES * value) for value in levels], dtype=float)

    both = [group(left), group(right)]
    log_probs = [-1 - np.linspace(0, 0.1, seeds), -2 - np.linspace(0, 0.1, seeds)]
    return Contrast(name, "split", "lora", both[0], both[1], log_probs[0], log_probs[1], np.zeros(EXAMPLES, dtype=int))


@pytest.mark.parametrize(
    ("left", "right", "seeds", "spread", "verdict"),
    [
        (0.6, 0.3, 6, 0.05, "holds"),
        (0.3, 0.6, 6, 0.05, "reversed"),
        (0.50, 0.505, 6, 0.01, "equivalent"),
        (0.50, 0.505, 4, 0.0, "equivalent"),
        (0.50, 0.505, 3, 0.0, "inconclusive"),  # nor can they show that there is none
        (0.5, 0.4, 6, 0.3, "inconclusive"),
        (0.6, 0.3, 3, 0.05, "inconclusive"),  # three seeds cannot decide, however large the effect
        (0.6, 0.3, 1, 0.0, "inconclusive"),
        (0.0, 0.005, 6, 0.0, "saturated"),
        (1.0, 0.995, 6, 0.0, "saturated"),
        (1.0, 0.0, 6, 0.0, "holds"),  # at the ends, but not at the same one
        (0.03, 0.02, 6, 0.01, "saturated"),  # within the margin of 0, where any two are within it of each other
        (0.97, 0.98, 6, 0.01, "saturated"),
        (0.055, 0.045, 6, 0.01, "equivalent"),  # one of them is not
        (0.04, 0.01, 6, 0.0, "holds"),  # a difference that shows is one
        (0.01, 0.04, 6, 0.0, "reversed"),
        (0.03, 0.02, 3, 0.0, "inconclusive"),
    ],
)
def test_the_verdict(left: float, right: float, seeds: int, spread: float, verdict: str) -> None:
    (effect,) = judge([contrast(left, right, seeds, spread)], draws=300)
    assert effect.verdict == verdict
    assert effect.difference == pytest.approx(100 * (left - right), abs=0.6)
    assert (effect.interval is None) == (seeds == 1)
    if effect.interval:
        assert effect.interval.low - 1e-9 <= effect.difference <= effect.interval.high + 1e-9
    if verdict == "inconclusive" and seeds > 1:
        assert effect.seeds_needed is not None
        assert effect.seeds_needed > 3
    said = of_effect(effect)
    assert verdict in said
    assert "nan" not in said
    if verdict == "saturated":
        assert "log p per token +1.000" in said


@pytest.mark.parametrize(("pairs", "verdict"), [(6, "equivalent"), (5, "inconclusive")])
def test_pairs_that_could_not_differ_are_not_called_equivalent(pairs: int, verdict: str) -> None:
    (effect,) = judge([replace(contrast(0.50, 0.50, pairs, 0.01), paired=True)], draws=300)
    assert (effect.verdict, effect.equivalence_p is None) == (verdict, pairs == 5)
    assert effect.seeds_needed == (6 if pairs == 5 else None)


def test_room_is_the_margin_and_the_odds_are_said() -> None:
    """Means of 8 and 7 % lie within a margin of 10 of 0, and not within one of 5."""
    (wide,), (usual,) = (judge([contrast(0.08, 0.07, 6, 0.01)], margin, draws=300) for margin in (10, 5))
    assert (wide.verdict, usual.verdict) == ("saturated", "equivalent")
    assert "saturated, log p per token +1.000 (p 0.002); log-odds +0.14 [" in of_effect(wide)
    assert "log-odds" not in of_effect(usual)


def test_two_seeds_beside_six_are_still_two() -> None:
    both = contrast(0.50, 0.505, 6, 0.01)
    (effect,) = judge([replace(both, left=both.left[:2], log_prob_left=None)], draws=300)
    assert (effect.verdict, effect.seeds_needed) == ("inconclusive", 4)
    assert "(at least 0.071 with so few seeds), 2 and 6 seeds: inconclusive, 4 seeds an arm needed" in of_effect(effect)


def test_looking_at_many_effects_asks_more_of_each() -> None:
    alone = judge([contrast(0.6, 0.3, 5, 0.05)], draws=200)[0]
    many = judge([contrast(0.6, 0.3, 5, 0.05)] + 9 * [contrast(0.5, 0.5, 5, 0.2)], draws=200)[0]
    assert alone.p == many.p
    assert alone.verdict == "holds"
    assert many.verdict == "inconclusive"


RECIPE: dict[str, Any] = {
    "name": "study",
    "task": {"name": "scan", "splits": ["add_jump", "length"]},
    "arms": ["english", "german", "scratch"],
    "methods": [{"name": "lora", "bits": 32}, {"name": "lora", "rank": 4, "bits": 32}],
    "seeds": [0, 1],
    "train": {"steps": 5, "learning_rate": {"lora": 0.1, "scratch": 0.2}},
    "effects": ["english-scratch", "german-english"],
}


def finish(study: StudyFolder, cell: Cell, right: int, examples: int = 50) -> None:
    """A run's folder as a run leaves it, with `right` examples right."""
    folder = study.run(cell.run_id)
    folder.path.mkdir(parents=True)
    rows = range(examples)
    table = pyarrow.table(
        {
            "index": list(rows), "category": ["and", "after"] * (examples // 2),
            "correct": [row < right for row in rows], "log_prob": [-1.0] * examples, "tokens": [2] * examples,
        }
    )  # fmt: skip
    pyarrow.parquet.write_table(table, folder.path / "examples.parquet")
    folder.finish({"run_id": cell.run_id})


@pytest.fixture
def recipe() -> Recipe:
    return validate(RECIPE, "here")


def test_arms_are_compared_under_the_same_method_and_scratch_under_its_own(recipe: Recipe, tmp_path: Path) -> None:
    study, cells = StudyFolder(tmp_path), expand(recipe)
    for cell in cells:
        finish(study, cell, {"english": 30, "german": 20, "scratch": 10}[cell.arm] + cell.seed)
    found = collect(recipe, cells, study).contrasts
    assert len(found) == 2 * 2 * 2  # splits, methods, effects
    assert {contrast.method for contrast in found} == {"lora r16 32-bit", "lora r4 32-bit"}
    for one in found:
        assert one.left.shape == one.right.shape == (2, 50)
        assert one.left.mean() - one.right.mean() == pytest.approx(0.4 if one.name == "english-scratch" else -0.2)
        assert len(set(one.categories.tolist())) == 2
        assert one.log_prob_left.tolist() == [-0.5, -0.5]


def test_effects_are_kept_and_not_judged_twice(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, cells = StudyFolder(tmp_path), expand(recipe)
    assert update_effects(recipe, cells, study)["sentences"] == []
    assert not (tmp_path / "effects.json").exists()
    for cell in cells:
        if cell.split == "length" and cell.seed == 0:
            finish(study, cell, 20)
    first = update_effects(recipe, cells, study)
    assert len(first["effects"]) == 4
    assert all("one seed decides nothing" in line for line in first["sentences"])
    assert json.loads((tmp_path / "effects.json").read_text()) == first
    with monkeypatch.context() as patch:
        patch.setattr("petransfer.effects.contrasts._judged", lambda *_: pytest.fail("judged again"))
        assert update_effects(recipe, cells, study) == first
    finish(study, next(cell for cell in cells if cell.split == "length" and cell.seed == 1), 20)
    assert update_effects(recipe, cells, study)["runs_sha256"] != first["runs_sha256"]


def test_the_margin_is_the_recipes(recipe: Recipe, tmp_path: Path) -> None:
    """Two arms 2 points apart, all seeds alike: equal within 5 points, not within 1; what was kept is judged anew."""
    content = RECIPE | {"seeds": [0, 1, 2, 3], "effects": ["english-german"]}
    usual, strict = validate(content, "here"), validate(content | {"margin": 1}, "here")
    study, cells = StudyFolder(tmp_path), expand(usual)
    assert [cell.run_id for cell in expand(strict)] == [cell.run_id for cell in cells]
    for cell in cells:
        finish(study, cell, 25 if cell.arm == "english" else 24)
    found = {one.margin: update_effects(one, cells, study) for one in (usual, strict)}
    assert {one["verdict"] for one in found[5]["effects"]} == {"equivalent"}
    assert all("equivalent within 5 points" in line for line in found[5]["sentences"])
    assert {(one["verdict"], one["margin"]) for one in found[1]["effects"]} == {("inconclusive", 1.0)}


def test_the_papers_figures_are_judged_by_the_same_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = validate(RECIPE | {"effects": ["english-scratch"], "margin": 2.5, "seeds": [0]}, "here")
    study, cells = StudyFolder(tmp_path), expand(recipe)
    for cell in cells:
        finish(study, cell, 20)
    margins: list[float] = []
    monkeypatch.setattr("petransfer.effects.verdict.equivalence_p", lambda *given, **_: margins.append(given[2]))
    found = update_effects(recipe, cells, study)["effects"]
    papers = [one for one in found if one["paper"]]
    assert papers
    assert margins == [2.5] * (len(found) + len(papers))


def test_runs_on_other_examples_are_not_compared(recipe: Recipe, tmp_path: Path) -> None:
    study, cells = StudyFolder(tmp_path), expand(recipe)
    one = [cell for cell in cells if cell.split == "length" and cell.seed == 0]
    for cell in one:
        finish(study, cell, 20, examples=50 if cell.arm == "english" else 48)
    with pytest.raises(UserError, match="not tested on the same examples"):
        collect(recipe, one, study)
