"""Verdicts on constructed contrasts: holds, reversed, equivalent, inconclusive, saturated and not learnt."""

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
    """Return a contrast of two arms. The exact match of their seeds is spread evenly within `spread` of the levels."""

    def group(level: float) -> np.ndarray:
        levels = level + spread * np.linspace(-1, 1, seeds)
        return np.array([np.arange(EXAMPLES) < round(EXAMPLES * value) for value in levels], dtype=float)

    both = [group(left), group(right)]
    log_probs = [-1 - np.linspace(0, 0.1, seeds), -2 - np.linspace(0, 0.1, seeds)]
    return Contrast(name, "split", "lora", both[0], both[1], log_probs[0], log_probs[1], np.zeros(EXAMPLES, dtype=int))


def counts(left: Sequence[int], right: Sequence[int], examples: int) -> Contrast:
    """Return a contrast of two arms. `left` and `right` are the numbers of correct examples of the seeds."""
    sides = [np.array([np.arange(examples) < count for count in side], dtype=float) for side in (left, right)]
    return Contrast("a-b", "split", "lora", *sides, None, None, np.zeros(examples, dtype=int))


@pytest.mark.parametrize(
    ("left", "right", "seeds", "spread", "verdict"),
    [
        (0.6, 0.3, 6, 0.05, "holds"),
        (0.3, 0.6, 6, 0.05, "reversed"),
        (0.50, 0.505, 6, 0.01, "equivalent"),
        (0.50, 0.505, 4, 0.0, "equivalent"),
        (0.50, 0.505, 3, 0.0, "inconclusive"),  # three seeds are too few to show equivalence
        (0.5, 0.4, 6, 0.3, "inconclusive"),
        (0.6, 0.3, 3, 0.05, "inconclusive"),  # three seeds are too few, however large the difference is
        (0.6, 0.3, 1, 0.0, "inconclusive"),
        (0.0, 0.005, 6, 0.0, "saturated"),
        (0.0, 0.005, 3, 0.0, "inconclusive"),  # the scores of further seeds can be far from 0
        (0.0, 0.0, 1, 0.0, "inconclusive"),
        (1.0, 0.995, 6, 0.0, "saturated"),
        (1.0, 0.0, 6, 0.0, "holds"),  # near an end, but not both near the same one
        (0.03, 0.02, 6, 0.01, "saturated"),  # both scores are within the margin of 0
        (0.97, 0.98, 6, 0.01, "saturated"),
        (0.055, 0.045, 6, 0.01, "equivalent"),  # only one score is within the margin of 0
        (0.04, 0.01, 6, 0.0, "holds"),  # a significant difference near 0
        (0.01, 0.04, 6, 0.0, "reversed"),
        (0.03, 0.02, 3, 0.0, "inconclusive"),
    ],
)
def test_the_verdict_follows_from_levels_seeds_and_spread(
    left: float, right: float, seeds: int, spread: float, verdict: str
) -> None:
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
    assert "-" not in message.replace("a-b", "")  # minus signs are not hyphens
    assert "Difference in test loss per token: \u22121.000 nats" in details(kept, EM)


@pytest.mark.parametrize(("pairs", "verdict"), [(6, "equivalent"), (5, "inconclusive")])
def test_five_pairs_of_seeds_are_too_few_for_equivalence(pairs: int, verdict: str) -> None:
    (effect,) = judge([replace(contrast(0.50, 0.50, pairs, 0.01), paired=True)])
    assert (effect.verdict, effect.equivalence_p is None) == (verdict, pairs == 5)
    assert effect.seeds_needed == (6 if pairs == 5 else None)


def test_saturation_and_log_odds_depend_on_the_margin() -> None:
    """Means of 8 and 7 % are within a margin of 10 points of 0, but not within 5 points."""
    near = contrast(0.08, 0.07, 6, 0.01)
    (wide,), (usual,) = (judge([near], Thresholds(margin=margin)) for margin in (10, 5))
    assert (wide.verdict, usual.verdict) == ("saturated", "equivalent")
    assert wide.log_odds
    assert wide.log_odds.difference == pytest.approx(0.14, abs=0.01)
    assert usual.log_odds is None


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "inconclusive"), (3, "inconclusive"), (4, "holds")])
def test_many_seeds_on_one_side_do_not_compensate_for_few_on_the_other(seeds: int, verdict: str) -> None:
    """The permutation test rejects, but two or three scores do not show how much the scores of an arm vary."""
    both = contrast(0.6, 0.3, 10, 0.02)
    (effect,) = judge([replace(both, left=both.left[:seeds], log_prob_left=None)])
    assert (effect.p < 0.05, effect.verdict) == (True, verdict)


def test_more_seeds_are_not_advised_if_there_are_enough() -> None:
    (effect,) = judge([contrast(0.50, 0.52, 6, 0.03)])
    assert (effect.verdict, effect.seeds_needed) == ("inconclusive", 5)
    assert effect.because == "p is not below 0.05"


def test_two_against_six_seeds_are_too_few_for_a_verdict() -> None:
    both = contrast(0.50, 0.505, 6, 0.01)
    (effect,) = judge([replace(both, left=both.left[:2], log_prob_left=None)])
    assert (effect.verdict, effect.seeds_needed) == ("inconclusive", 4)
    assert effect.least_p_holm == pytest.approx(2 / 28)
    kept = json.loads(json.dumps(asdict(effect)))
    assert (
        "2 and 6 seeds. Inconclusive: 2 seeds are too few; a verdict needs 4 on each side; to detect a difference of "
        "5.0 points in 80 % of all studies, about 4 seeds per arm are needed." in sentence(kept, EM)
    )
    assert "smallest possible p value with so few seeds is 0.071" in details(kept, EM)


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


def test_effects_that_are_not_learnt_do_not_count_in_holms_correction() -> None:
    """Otherwise the p values of the other effects would be adjusted for too many tests."""
    good = replace(contrast(0.6, 0.3, 6, 0.05), dev=(0.99, 0.99))
    bad = replace(good, dev=(0.2, 0.99))
    alone, among = judge([good])[0], judge([good, bad, bad, bad])[0]
    assert among.p_holm == alone.p_holm == alone.p
    assert judge([good, good, good])[0].p_holm == pytest.approx(3 * alone.p)


def test_a_difference_below_the_smallest_effect_is_inconclusive() -> None:
    """All seeds of the left side are half a point above all seeds of the right side."""
    near = counts([2020] * 6, [2000] * 6, 4000)
    (effect,) = judge([near], Thresholds(margin=0.1))
    assert effect.p_holm == pytest.approx(2 / 924)
    assert effect.verdict == "inconclusive"
    assert "below the smallest effect of interest, 1 points" in effect.because
    (sharper,) = judge([near], Thresholds(margin=0.1, smallest_effect=0.4))
    assert sharper.verdict == "holds"


def test_a_difference_near_zero_is_inconclusive_if_the_log_odds_are_unclear() -> None:
    """One seed is far above the right side, and five are slightly above: only the difference in points is clear."""
    (effect,) = judge([counts((26, 27, 28, 29, 30, 600), (20, 21, 22, 23, 24, 25), 1000)])
    assert effect.p < 0.05
    assert effect.log_odds
    assert effect.log_odds.interval
    assert effect.log_odds.interval.holds_zero
    assert effect.interval
    assert not effect.interval.holds_zero
    assert effect.verdict == "inconclusive"
    assert effect.because == (
        "scores near 0 % or 100 % are also compared as log-odds, and the 95 % interval of the difference in log-odds "
        "includes zero"
    )


def test_an_arm_with_a_single_generalising_seed_is_not_equivalent() -> None:
    """Five seeds have 0.1 to 3 % and one has 12 %, so the mean of further seeds may be much higher."""
    (effect,) = judge([counts((3, 2, 5, 30, 1, 120), (30, 31, 29, 32, 28, 30), 1000)])
    assert effect.equivalence_p
    assert effect.equivalence_p < 0.05
    assert effect.interval
    assert effect.interval.high > 5
    assert effect.verdict == "inconclusive"


def test_an_effect_among_many_tested_effects_needs_a_smaller_p_value() -> None:
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
    """Write the folder of a finished run with `right` correct examples."""
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
    folder.finish({"run_id": cell.run_id, "test": {"exact_match": 100 * right / examples}})


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


def test_effects_are_saved_and_judged_again_only_after_new_runs(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_the_margin_of_the_recipe_decides_equivalence(recipe: Recipe, tmp_path: Path) -> None:
    """The arms differ by 1.25 points in every seed: equivalent with a margin of 5 points, inconclusive with 1 point."""
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


def test_the_papers_scores_are_judged_with_the_margin_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert margins == [2.5] * (
        len(found) + len(splits)
    )  # the paper's scores of a split are judged once for all methods


def test_runs_with_different_test_examples_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    study, cells = StudyFolder(tmp_path), expand(recipe)
    one = [cell for cell in cells if cell.split == "length" and cell.seed == 0]
    for cell in one:
        finish(study, cell, 20, examples=50 if cell.arm == "english" else 48)
    with pytest.raises(UserError, match="not tested on the same examples"):
        collect(recipe, one, study)
