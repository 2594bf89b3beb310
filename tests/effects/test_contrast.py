"""Verdicts on contrasts that are made to hold, to be reversed, to be equal, to be unclear and to have no room."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.kind import Thresholds
from petransfer.effects.kinds.contrast import details, judge, sentence
from petransfer.effects.pairs import Contrast
from petransfer.effects.study_effects import collect, update_effects
from petransfer.errors import UserError
from petransfer.recipe.loading import validate
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, expand

EXAMPLES = 200
EM = CRITERIA["exact_match"]


def contrast(left: float, right: float, seeds: int = 6, spread: float = 0.0, name: str = "a-b") -> Contrast:
    """Arms whose seeds have exactly these levels of EM, give or take `spread`."""

    def group(level: float) -> np.ndarray:
        levels = level + spread * np.linspace(-1, 1, seeds)
        return np.array([np.arange(EXAMPLES) < round(EXAMPLES * value) for value in levels], dtype=float)

    both = [group(left), group(right)]
    log_probs = [-1 - np.linspace(0, 0.1, seeds), -2 - np.linspace(0, 0.1, seeds)]
    return Contrast(name, "split", "lora", both[0], both[1], log_probs[0], log_probs[1], np.zeros(EXAMPLES, dtype=int))


def counts(left: Sequence[int], right: Sequence[int], examples: int) -> Contrast:
    """Arms of which each seed has so many examples right."""
    sides = [np.array([np.arange(examples) < count for count in side], dtype=float) for side in (left, right)]
    return Contrast("a-b", "split", "lora", *sides, None, None, np.zeros(examples, dtype=int))


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
        (0.0, 0.005, 3, 0.0, "inconclusive"),  # other seeds can be far from 0
        (0.0, 0.0, 1, 0.0, "inconclusive"),
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
    (effect,) = judge([contrast(left, right, seeds, spread)])
    assert effect.verdict == verdict
    assert effect.difference == pytest.approx(100 * (left - right), abs=0.6)
    assert (effect.interval is None) == (seeds == 1)
    if effect.interval:
        assert effect.interval.low - 1e-9 <= effect.difference <= effect.interval.high + 1e-9
    if verdict == "inconclusive" and seeds > 1:
        assert effect.seeds_needed is not None
        assert effect.seeds_needed > 3
    kept = json.loads(json.dumps(asdict(effect)))
    message = sentence(kept, EM)
    assert f" {verdict.capitalize()}" in message
    assert "nan" not in message
    assert "-" not in message.replace("a-b", "")  # minus signs are real
    assert "Difference in test loss per token: \u22121.000 nats" in details(kept, EM)


@pytest.mark.parametrize(("pairs", "verdict"), [(6, "equivalent"), (5, "inconclusive")])
def test_pairs_that_could_not_differ_are_not_called_equivalent(pairs: int, verdict: str) -> None:
    (effect,) = judge([replace(contrast(0.50, 0.50, pairs, 0.01), paired=True)])
    assert (effect.verdict, effect.equivalence_p is None) == (verdict, pairs == 5)
    assert effect.seeds_needed == (6 if pairs == 5 else None)


def test_room_is_the_margin_and_the_odds_are_given() -> None:
    """Means of 8 and 7 % lie within a margin of 10 of 0, and not within one of 5."""
    near = contrast(0.08, 0.07, 6, 0.01)
    (wide,), (usual,) = (judge([near], Thresholds(margin=margin)) for margin in (10, 5))
    assert (wide.verdict, usual.verdict) == ("saturated", "equivalent")
    assert wide.log_odds
    assert wide.log_odds.difference == pytest.approx(0.14, abs=0.01)
    assert usual.log_odds is None


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "inconclusive"), (3, "inconclusive"), (4, "holds")])
def test_many_seeds_on_one_side_do_not_make_up_for_few_on_the_other(seeds: int, verdict: str) -> None:
    """Two or three scores do not show how much the scores of an arm vary, although the permutation test rejects."""
    both = contrast(0.6, 0.3, 10, 0.02)
    (effect,) = judge([replace(both, left=both.left[:seeds], log_prob_left=None)])
    assert (effect.p < 0.05, effect.verdict) == (True, verdict)


def test_enough_seeds_are_not_asked_for_again() -> None:
    (effect,) = judge([contrast(0.50, 0.52, 6, 0.03)])
    assert (effect.verdict, effect.seeds_needed) == ("inconclusive", 5)
    assert effect.because == "p is not below 0.05"


def test_two_seeds_beside_six_are_still_two() -> None:
    both = contrast(0.50, 0.505, 6, 0.01)
    (effect,) = judge([replace(both, left=both.left[:2], log_prob_left=None)])
    assert (effect.verdict, effect.seeds_needed) == ("inconclusive", 4)
    assert effect.least_p_holm == pytest.approx(2 / 28)
    kept = json.loads(json.dumps(asdict(effect)))
    assert (
        "2 and 6 seeds. Inconclusive: 2 seeds are too few; a verdict needs 4 on each side; to detect a difference of "
        "5.0 points in 80 % of all studies, about 4 seeds per arm are needed." in sentence(kept, EM)
    )
    assert "smallest possible result with so few seeds is p = 0.071" in details(kept, EM)


@pytest.mark.parametrize(
    ("dev", "verdict"),
    [((0.95, 0.99), "holds"), ((0.89, 0.99), "not learnt"), ((0.99, 0.2), "not learnt"), ((0.1, 0.1), "not learnt"),
     ((math.nan, 0.99), "holds")],
)  # fmt: skip
def test_a_side_that_has_not_learnt_the_task_is_not_judged(dev: tuple[float, float], verdict: str) -> None:
    one = replace(contrast(0.6, 0.3, 6, 0.05), dev=dev, left_name="a", right_name="b")
    (effect,) = judge([one])
    assert effect.verdict == verdict
    assert (effect.p_holm is None) == (verdict == "not learnt")
    (lenient,) = judge([one], Thresholds(learnt=0))
    assert lenient.verdict == "holds"


def test_what_is_not_judged_does_not_count_in_holms_family() -> None:
    """The p values of the others would be multiplied by more, or by less, than they should."""
    good = replace(contrast(0.6, 0.3, 6, 0.05), dev=(0.99, 0.99))
    bad = replace(good, dev=(0.2, 0.99))
    alone, among = judge([good])[0], judge([good, bad, bad, bad])[0]
    assert among.p_holm == alone.p_holm == alone.p
    assert judge([good, good, good])[0].p_holm == pytest.approx(3 * alone.p)


def test_a_difference_below_the_smallest_effect_is_no_effect() -> None:
    """All seeds of one side are above all of the other, by half a point."""
    near = counts([2020] * 6, [2000] * 6, 4000)
    (effect,) = judge([near], Thresholds(margin=0.1))
    assert effect.p_holm == pytest.approx(2 / 924)
    assert effect.verdict == "inconclusive"
    assert "below the smallest effect of interest, 1 points" in effect.because
    (sharper,) = judge([near], Thresholds(margin=0.1, smallest_effect=0.4))
    assert sharper.verdict == "holds"


def test_near_the_ends_the_log_odds_must_agree() -> None:
    """One seed far above, the others at most a little above: points say more than odds."""
    (effect,) = judge([counts((26, 27, 28, 29, 30, 600), (20, 21, 22, 23, 24, 25), 1000)])
    assert effect.p < 0.05
    assert effect.log_odds
    assert effect.log_odds.interval
    assert effect.log_odds.interval.holds_zero
    assert effect.verdict == "inconclusive"


def test_a_rare_generaliser_is_not_called_equivalent() -> None:
    """Five seeds at 2 % and one at 12 %: the mean of other seeds may be far above."""
    (effect,) = judge([counts((3, 2, 5, 30, 1, 120), (30, 31, 29, 32, 28, 30), 1000)])
    assert effect.equivalence_p
    assert effect.equivalence_p < 0.05
    assert effect.interval
    assert effect.interval.high > 5
    assert effect.verdict == "inconclusive"


def test_looking_at_many_effects_asks_more_of_each() -> None:
    alone = judge([contrast(0.6, 0.3, 5, 0.05)])[0]
    many = judge([contrast(0.6, 0.3, 5, 0.05)] + 9 * [contrast(0.5, 0.5, 5, 0.2)])[0]
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
    found = collect(recipe, cells, study).of("contrast")
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
    assert all("1 seed is too few" in line for line in first["sentences"][1:])
    assert json.loads((tmp_path / "effects.json").read_text()) == first
    with monkeypatch.context() as patch:
        patch.setattr("petransfer.effects.study_effects._judged", lambda *_: pytest.fail("judged again"))
        assert update_effects(recipe, cells, study) == first
    finish(study, next(cell for cell in cells if cell.split == "length" and cell.seed == 1), 20)
    assert update_effects(recipe, cells, study)["runs_sha256"] != first["runs_sha256"]


def test_the_margin_is_the_recipes(recipe: Recipe, tmp_path: Path) -> None:
    """Two arms 1.25 points apart, all seeds alike: equal within 5 points, not within 1; verdicts are made again."""
    content = RECIPE | {"seeds": [0, 1, 2, 3], "effects": ["english-german"]}
    usual, strict = validate(content, "here"), validate(content | {"margin": 1}, "here")
    study, cells = StudyFolder(tmp_path), expand(usual)
    assert [cell.run_id for cell in expand(strict)] == [cell.run_id for cell in cells]
    for cell in cells:
        finish(study, cell, 200 if cell.arm == "english" else 195, examples=400)
    found = {one.margin: update_effects(one, cells, study) for one in (usual, strict)}
    assert {one["verdict"] for one in found[5]["effects"]} == {"equivalent"}
    assert all(
        "Equivalent: an equivalence test (p < 0.05) shows a difference below 5 points" in line
        for line in found[5]["sentences"][1:]
    )
    assert {(one["verdict"], one["margin"]) for one in found[1]["effects"]} == {("inconclusive", 1.0)}


def test_the_papers_figures_are_judged_by_the_same_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = validate(RECIPE | {"effects": ["english-scratch"], "margin": 2.5, "seeds": [0]}, "here")
    study, cells = StudyFolder(tmp_path), expand(recipe)
    for cell in cells:
        finish(study, cell, 20)
    margins: list[float] = []
    monkeypatch.setattr("petransfer.effects.kinds.contrast.equivalence_p", lambda *given, **_: margins.append(given[2]))
    found = update_effects(recipe, cells, study)["effects"]
    papers = [one for one in found if one["paper"]]
    assert papers
    splits = {one["split"] for one in papers}
    assert margins == [2.5] * (len(found) + len(splits))  # methods share the paper's figures of a split


def test_runs_on_other_examples_are_not_compared(recipe: Recipe, tmp_path: Path) -> None:
    study, cells = StudyFolder(tmp_path), expand(recipe)
    one = [cell for cell in cells if cell.split == "length" and cell.seed == 0]
    for cell in one:
        finish(study, cell, 20, examples=50 if cell.arm == "english" else 48)
    with pytest.raises(UserError, match="not tested on the same examples"):
        collect(recipe, one, study)
