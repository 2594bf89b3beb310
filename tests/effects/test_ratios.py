"""Differences of differences and retention, by hand and on simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from petransfer.effects.ratios import Two, difference_of_differences, judge_scales, retention, scale_p
from petransfer.effects.sentences import of_retention, of_scale
from petransfer.effects.verdict import Contrast

EXAMPLES = 200


def group(rng: np.random.Generator, mean: float, spread: float, seeds: int, examples: int = EXAMPLES) -> np.ndarray:
    """(seeds, examples): each seed has a level of its own."""
    levels = np.clip(mean + spread * rng.standard_normal((seeds, 1)), 0, 1)
    return (rng.random((seeds, examples)) < levels).astype(float)


def contrast(left: np.ndarray, right: np.ndarray, name: str = "a-b") -> Contrast:
    log_probs = -np.ones(len(left)), -np.ones(len(right))
    return Contrast(name, "split", "lora", left, right, *log_probs, np.zeros(left.shape[1], dtype=int))


def flat(level: float, seeds: int = 6) -> np.ndarray:
    """Seeds around a level, whose mean it is."""
    counts = [round(EXAMPLES * level) + step for step in np.resize([-2, 2, -1, 1, -3, 3], seeds)]
    return np.array([np.arange(EXAMPLES) < count for count in counts], dtype=float)


def test_a_scale_effect_by_hand() -> None:
    two = Two(contrast(flat(0.8), flat(0.1)), contrast(flat(0.7), flat(0.5)), "large", "small")
    (scale,) = judge_scales([two], draws=400)
    assert scale.difference == pytest.approx(70 - 20)
    assert (scale.of_left, scale.of_right) == (pytest.approx(10), pytest.approx(40))
    assert (scale.here.difference, scale.there.difference) == (pytest.approx(70), pytest.approx(20))
    assert scale.verdict == "holds"
    (other,) = judge_scales([Two(two.there, two.here, "small", "large")], draws=400)
    assert other.verdict == "reversed"
    said = of_scale(scale)
    assert "in large (80.0 and 10.0 %)" in said
    assert "in small (70.0 and 50.0 %)" in said
    assert "+10.0 of it from the first arm and +40.0 from the second" in said


@pytest.mark.parametrize(
    ("levels", "seeds", "verdict"),
    [
        ((0.8, 0.1, 0.7, 0.5), 3, "inconclusive"),  # three seeds a side decide nothing, however large
        ((0.8, 0.1, 0.7, 0.5), 1, "inconclusive"),
        ((0.60, 0.40, 0.61, 0.41), 6, "equivalent"),
        ((0.60, 0.40, 0.60, 0.40), 3, "inconclusive"),  # nor do they show that nothing changes
        ((0.0, 0.0, 0.0, 0.0), 6, "saturated"),
        ((0.03, 0.02, 0.02, 0.03), 6, "saturated"),  # none of the four can differ by more than the margin
        ((0.03, 0.02, 0.41, 0.40), 6, "equivalent"),
    ],
)
def test_the_verdict_on_scale(levels: tuple[float, ...], seeds: int, verdict: str) -> None:
    sides = [flat(level, seeds) if level else np.zeros((seeds, EXAMPLES)) for level in levels]
    (scale,) = judge_scales([Two(contrast(*sides[:2]), contrast(*sides[2:]), "x", "y")], draws=300)
    assert scale.verdict == verdict
    assert "nan" not in of_scale(scale)


def test_a_scale_effect_is_no_surer_than_the_seeds_of_a_side_allow() -> None:
    """However far four groups lie apart: five and six seeds deal to 2/462 at least, two and six to 2/28."""
    sides = [contrast(flat(left, seeds), flat(right)) for left, right, seeds in ((0.9, 0.1, 5), (0.5, 0.4, 6))]
    assert scale_p(Two(*sides, "large", "small")) == pytest.approx(2 / math.comb(11, 5))
    few = contrast(flat(0.5, 2), flat(0.4))
    assert scale_p(Two(sides[0], few, "large", "small")) == pytest.approx(2 / math.comb(8, 2))


def test_a_scale_effect_is_adjusted_for_what_stands_beside_it() -> None:
    two = Two(contrast(flat(0.8), flat(0.1)), contrast(flat(0.7), flat(0.5)), "large", "small")
    alone, beside = judge_scales([two], draws=100)[0], judge_scales([two], beside=[0.5] * 40, draws=100)[0]
    assert beside.p_holm == pytest.approx(41 * alone.p)


def test_retention_by_hand() -> None:
    one = retention(Two(contrast(flat(0.5), flat(0.2)), contrast(flat(0.6), flat(0.2)), "lora", "full"), draws=500)
    assert one.ratio == pytest.approx(0.75)
    assert one.interval is not None
    assert one.interval.low < 0.75 < one.interval.high
    assert "is 0.75 [" in of_retention(one)


@pytest.mark.parametrize(
    ("under", "over", "why"),
    [
        ((flat(0.5), flat(0.2)), (flat(0.21), flat(0.2)), "the effect under full could be zero"),
        ((flat(0.5), flat(0.2)), (flat(0.6, 1), flat(0.2)), "full rests on a single seed"),
        ((flat(0.5, 1), flat(0.2)), (flat(0.6), flat(0.2)), "lora rests on a single seed"),
    ],
)
def test_a_ratio_to_what_may_be_nothing_is_not_given(
    under: tuple[np.ndarray, np.ndarray], over: tuple[np.ndarray, np.ndarray], why: str
) -> None:
    one = retention(Two(contrast(*under), contrast(*over), "lora", "full"), draws=300)
    assert one.ratio is None
    assert one.interval is None
    assert of_retention(one).endswith(str(one.undefined))
    assert why in str(one.undefined)
    assert str(one.undefined).startswith("not defined: ")


def test_a_shared_control_is_drawn_once() -> None:
    """When both effects are taken from the same scratch runs, its luck is common to both and the ratio steadier."""
    rng = np.random.default_rng(0)
    control = group(rng, 0.3, 0.12, 6)
    lora, full = flat(0.6), flat(0.62)
    shared = retention(Two(contrast(lora, control), contrast(full, control), "lora", "full"))
    apart = retention(Two(contrast(lora, control), contrast(full, control.copy()), "lora", "full"))
    assert shared.interval is not None
    assert apart.interval is not None
    assert shared.interval.high - shared.interval.low < 0.7 * (apart.interval.high - apart.interval.low)


STUDIES, MANY = 1000, 500


def _is_nominal(covered: int) -> None:
    assert abs(covered / STUDIES - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / STUDIES)


def test_the_interval_of_scale_covers_at_its_rate() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(STUDIES):
        levels = ((0.7, 0.12), (0.3, 0.08), (0.6, 0.1), (0.4, 0.14))
        sides = [group(rng, mean, spread, 5, MANY) for mean, spread in levels]
        found = difference_of_differences(Two(contrast(*sides[:2]), contrast(*sides[2:]), "x", "y"), draws=150)
        assert found is not None
        covered += found.low <= 20 <= found.high
    _is_nominal(covered)


def test_the_interval_of_retention_covers_at_its_rate() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(STUDIES):
        control = group(rng, 0.25, 0.07, 6, MANY)
        under, over = (contrast(group(rng, mean, 0.09, 6, MANY), control) for mean in (0.55, 0.65))
        found = retention(Two(under, over, "lora", "full"), draws=100).interval
        assert found is not None
        covered += found.low <= 0.75 <= found.high
    _is_nominal(covered)
