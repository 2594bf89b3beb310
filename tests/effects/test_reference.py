"""Verdicts on the per-seed scores of Orhan (2021), and caveats on these scores."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict

import pytest

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.kinds.contrast import Effect, details, judge
from petransfer.effects.kinds.scale import judge as judge_scales
from petransfer.effects.kinds.scale import sentence as of_scale
from petransfer.effects.pairs import Contrast, ContrastPair
from petransfer.effects.reference import (
    FAMILIES,
    caveats,
    nearest_paper_family,
    paper_contrast,
    paper_score,
    paper_scores,
)

SPLITS = ("add_jump", "add_turn_left", "around_right", "jump_around_right", "length", "opposite_right", "right")


def contrast(family: str, left: str, split: str, task: str = "scan") -> Contrast:
    found = paper_contrast(family, left, "scratch", task, split)
    assert found
    return found


@functools.cache
def alone(family: str, left: str, split: str) -> Effect:
    return judge([contrast(family, left, split)])[0]


@pytest.mark.parametrize(
    ("family", "arm", "scan", "cogs"),
    [
        ("t5-base", "english", 65.2, 83.3),
        ("t5-base", "scratch", 43.3, 32.3),
        ("t5-base", "multilingual", 56.1, 83.4),
        ("t5-base", "code", 66.4, 82.6),
        ("t5-base", "protein", 32.5, 15.4),
        ("opus-mt-de-fr", "german_french", 70.6, 83.4),
        ("opus-mt-de-fr", "scratch", 59.4, 62.7),
        ("t5-3b", "english", 76.3, 84.1),
        ("t5-3b", "scratch", 3.3, 15.5),
        ("t5-3b", "multilingual", 74.7, 84.6),
        ("t5-3b", "protein", 28.9, None),
    ],
)
def test_mean_scores_equal_those_in_the_paper(family: str, arm: str, scan: float, cogs: float | None) -> None:
    found = [paper_scores()[family, arm, "scan", split, ""].mean for split in SPLITS]
    assert sum(found) / 7 == pytest.approx(scan, abs=0.05)
    whole = paper_score(family, arm, "cogs", "gen")
    assert (whole.mean if whole else None) == (pytest.approx(cogs, abs=0.05) if cogs else None)


def test_the_score_of_a_cogs_split_is_the_mean_over_its_categories() -> None:
    for (family, arm, task, split, category), one in paper_scores().items():
        if task == "cogs" and not category:
            parts = [
                part
                for key, part in paper_scores().items()
                if key[:4] == (family, arm, "cogs", split) and key[4]
            ]  # fmt: skip
            assert len(parts) == 21
            for seed, share in enumerate(one.shares):
                assert share == pytest.approx(sum(part.shares[seed] for part in parts) / 21)


def test_a_contrast_of_some_categories_uses_only_their_scores() -> None:
    cases = ("cp_recursion", "active_to_passive")
    found = paper_contrast("t5-base", "english", "scratch", "cogs", "gen", cases)
    assert found is not None
    assert found.examples == 2_000
    for arm, side in (("english", found.left), ("scratch", found.right)):
        parts = [paper_scores()["t5-base", arm, "cogs", "gen", case].shares for case in cases]
        assert side[:, 0].tolist() == pytest.approx([(one + other) / 2 for one, other in zip(*parts, strict=True)])
    assert paper_contrast("t5-base", "english", "scratch", "cogs", "gen", ("cp_recursion", "unknown")) is None


def test_english_helps_on_some_splits_and_hurts_on_others() -> None:
    assert alone("t5-base", "english", "add_jump").verdict == "holds"
    assert alone("t5-base", "english", "opposite_right").verdict == "holds"
    assert alone("t5-base", "english", "jump_around_right").verdict == "reversed"
    assert alone("t5-base", "english", "add_turn_left").difference < 0
    assert alone("t5-base", "english", "jump_around_right").difference == pytest.approx(-6.4, abs=0.05)


def test_five_seeds_are_too_few_for_verdicts_on_seven_splits() -> None:
    effects = judge([contrast("t5-base", "english", split) for split in SPLITS])
    assert {effect.verdict for effect in effects} == {"inconclusive"}
    assert {effect.seeds_needed for effect in effects if effect.p < 0.01} == {6}
    assert all(effect.least_p_holm > 0.05 for effect in effects)
    kept = json.loads(json.dumps(asdict(effects[0])))
    assert "smallest possible p value with so few seeds is 0.056" in details(kept, CRITERIA["exact_match"])


@pytest.mark.parametrize("arm", ["english", "protein", "multilingual"])
def test_three_seeds_are_too_few_for_any_effect(arm: str) -> None:
    effects = [alone("t5-3b", arm, split) for split in SPLITS]
    assert all(effect.seeds == (3, 3) and effect.p >= 0.1 for effect in effects)
    assert {effect.verdict for effect in effects} <= {"inconclusive", "saturated"}
    assert effects[5].difference > 40 or arm != "english"


def test_the_effect_of_protein_changes_its_sign_with_model_size() -> None:
    """Protein hurts at base size and helps at 3B, both on average over the splits and on the split `right`."""
    means = {
        family: sum(alone(family, "protein", split).difference for split in SPLITS) / 7
        for family in ("t5-base", "t5-3b")
    }
    assert means["t5-base"] == pytest.approx(32.5 - 43.3, abs=0.15)
    assert means["t5-3b"] == pytest.approx(28.9 - 3.3, abs=0.15)
    assert alone("t5-base", "protein", "right").verdict == "reversed"
    assert alone("t5-3b", "protein", "right").difference > 0
    assert alone("t5-base", "protein", "add_jump").verdict == "saturated"


def test_the_scale_effect_of_english_comes_from_the_scratch_arm() -> None:
    two = ContrastPair(
        contrast("t5-3b", "english", "gen", "cogs"), contrast("t5-base", "english", "gen", "cogs"), "3B", "base"
    )
    (scale,) = judge_scales([two])
    assert scale.difference == pytest.approx((84.1 - 15.5) - (83.3 - 32.3), abs=0.2)
    assert scale.of_left < 1.5
    assert scale.of_right > 15
    assert scale.of_left + scale.of_right == pytest.approx(scale.difference)
    assert scale.verdict == "holds"
    assert "from the second" in of_scale(json.loads(json.dumps(asdict(scale))), CRITERIA["exact_match"])


def test_the_translation_model_has_enough_seeds_for_verdicts() -> None:
    effects = judge([contrast("opus-mt-de-fr", "german_french", split) for split in SPLITS])
    verdicts = dict(zip(SPLITS, (effect.verdict for effect in effects), strict=True))
    assert verdicts["add_jump"] == "holds"
    assert verdicts["add_turn_left"] == verdicts["jump_around_right"] == "reversed"


def test_scores_that_the_paper_does_not_have_are_none() -> None:
    assert paper_contrast("t5-base", "german", "scratch", "scan", "add_jump") is None
    assert paper_contrast("t5-3b", "protein", "scratch", "cogs", "gen") is None
    assert paper_score("nano", "german", "scan", "add_jump") is None
    assert paper_score("nano", "english", "slog", "gen") is None
    assert all(nearest_paper_family(family) == family for family in FAMILIES)
    assert [nearest_paper_family(name) for name in ("nano", "t5-v1_1-xl", "t5-11b")] == ["t5-base", "t5-3b", "t5-3b"]


def test_only_caveats_that_apply_are_returned() -> None:
    message = " ".join(caveats("nano", "scan", "add_jump", ["english"]))
    assert "chosen on test" in message
    assert "ours nano" in message
    assert "COGS" not in message
    assert "51 rows" in " ".join(caveats("t5-base", "cogs", "gen", ["english", "protein"]))
    assert "also has new embeddings" in " ".join(caveats("t5-base", "cogs", "gen", ["english", "protein"]))
