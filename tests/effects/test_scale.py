"""Scale effects (differences of differences): known effects and simulated studies."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.intervals import total_of
from petransfer.effects.kind import HolmResult, Thresholds
from petransfer.effects.kinds.scale import Scale, difference_of_differences, judge, judge_one, scale_p, sentence
from petransfer.effects.pairs import Contrast, ContrastPair

EXAMPLES = 200


def sentence_of(scale: Scale) -> str:
    return sentence(json.loads(json.dumps(asdict(scale))), CRITERIA["exact_match"])


def group(rng: np.random.Generator, mean: float, spread: float, seeds: int, examples: int = EXAMPLES) -> np.ndarray:
    """Draw an array (seeds, examples) of 0 and 1. Each seed has its own level."""
    levels = np.clip(mean + spread * rng.standard_normal((seeds, 1)), 0, 1)
    return (rng.random((seeds, examples)) < levels).astype(float)


def contrast(left: np.ndarray, right: np.ndarray, name: str = "a-b") -> Contrast:
    log_probs = -np.ones(len(left)), -np.ones(len(right))
    return Contrast(name, "split", "lora", left, right, *log_probs, np.zeros(left.shape[1], dtype=int))


def flat(level: float, seeds: int = 6) -> np.ndarray:
    """Return an array (seeds, examples) with seeds near `level`. The mean of an even number of seeds is `level`."""
    counts = [round(EXAMPLES * level) + step for step in np.resize([-2, 2, -1, 1, -3, 3], seeds)]
    return np.array([np.arange(EXAMPLES) < count for count in counts], dtype=float)


def test_a_scale_effect_of_known_levels() -> None:
    two = ContrastPair(contrast(flat(0.8), flat(0.1)), contrast(flat(0.7), flat(0.5)), "large", "small")
    (scale,) = judge([two])
    assert scale.difference == pytest.approx(70 - 20)
    assert (scale.of_left, scale.of_right) == (pytest.approx(10), pytest.approx(40))
    assert (scale.here.difference, scale.there.difference) == (pytest.approx(70), pytest.approx(20))
    assert scale.verdict == "holds"
    (other,) = judge([ContrastPair(two.there, two.here, "small", "large")])
    assert other.verdict == "reversed"
    message = sentence_of(scale)
    assert "in large (80.0 against 10.0 %)" in message
    assert "in small (70.0 against 50.0 %)" in message
    assert "+10.0 from the first arm and +40.0 from the second" in message


@pytest.mark.parametrize(
    ("levels", "seeds", "verdict"),
    [
        ((0.8, 0.1, 0.7, 0.5), 3, "inconclusive"),  # three seeds per arm are too few, however large the effect is
        ((0.8, 0.1, 0.7, 0.5), 1, "inconclusive"),
        ((0.60, 0.40, 0.61, 0.41), 6, "equivalent"),
        ((0.60, 0.40, 0.60, 0.40), 3, "inconclusive"),  # three seeds are too few to show equivalence
        ((0.0, 0.0, 0.0, 0.0), 6, "saturated"),
        ((0.0, 0.0, 0.0, 0.0), 3, "inconclusive"),
        ((0.03, 0.02, 0.02, 0.03), 6, "inconclusive"),  # near 0, the scores of further seeds could be much higher
        ((0.03, 0.02, 0.41, 0.40), 6, "equivalent"),
    ],
)
def test_the_verdict_on_a_scale_effect(levels: tuple[float, ...], seeds: int, verdict: str) -> None:
    sides = [flat(level, seeds) if level else np.zeros((seeds, EXAMPLES)) for level in levels]
    (scale,) = judge([ContrastPair(contrast(*sides[:2]), contrast(*sides[2:]), "x", "y")])
    assert scale.verdict == verdict
    assert "nan" not in sentence_of(scale)


def test_the_numbers_of_seeds_limit_the_p_value_of_a_scale_effect() -> None:
    """p is at least 2/462 for five and six seeds, and 2/28 for two and six seeds, however large the effect is."""
    sides = [contrast(flat(left, seeds), flat(right)) for left, right, seeds in ((0.9, 0.1, 5), (0.5, 0.4, 6))]
    assert scale_p(ContrastPair(*sides, "large", "small")) == pytest.approx(2 / math.comb(11, 5))
    few = contrast(flat(0.5, 2), flat(0.4))
    assert scale_p(ContrastPair(sides[0], few, "large", "small")) == pytest.approx(2 / math.comb(8, 2))


def test_scale_effects_are_adjusted_for_multiple_tests() -> None:
    two = ContrastPair(contrast(flat(0.8), flat(0.1)), contrast(flat(0.7), flat(0.5)), "large", "small")
    assert [one.p_holm for one in judge([two, two, two])] == pytest.approx([3 * scale_p(two)] * 3)
    assert judge_one(two, HolmResult(0.5, 41), Thresholds()).verdict == "inconclusive"


def test_a_group_in_both_effects_is_drawn_once() -> None:
    """The same runs have opposite signs in the two effects, so their random error cancels out."""
    shared = flat(0.3)
    here = replace(contrast(flat(0.8), shared), right_key="scratch")
    there = replace(contrast(flat(0.7), shared), right_key="scratch")
    two = ContrastPair(here, there, "large", "small")
    assert list(two.samples) == ["group 0", "scratch", "group 2"]
    assert two.weights(1, -1, -1, 1) == {"group 0": 1, "scratch": 0, "group 2": -1}
    assert total_of(two.samples, two.weights(1, -1, -1, 1)) == pytest.approx(0.1)


def test_test_examples_of_different_rows_are_drawn_separately() -> None:
    """The same examples are equally hard in both effects, so drawing them together makes the interval narrower."""
    here, there = contrast(flat(0.8), flat(0.1)), contrast(flat(0.7), flat(0.1))
    together = difference_of_differences(ContrastPair(here, there, "large", "small"))
    apart = difference_of_differences(ContrastPair(here, replace(there, rows="others"), "large", "small"))
    assert together is not None
    assert apart is not None
    assert apart.high - apart.low > 1.5 * (together.high - together.low)


STUDIES, MANY = 300, 200


def _is_at_least_nominal(covered: int) -> None:
    assert covered / STUDIES >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / STUDIES)


@pytest.mark.slow
def test_the_interval_contains_the_true_scale_effect_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(STUDIES):
        levels = ((0.7, 0.12), (0.3, 0.08), (0.6, 0.1), (0.4, 0.14))
        sides = [group(rng, mean, spread, 5, MANY) for mean, spread in levels]
        found = difference_of_differences(ContrastPair(contrast(*sides[:2]), contrast(*sides[2:]), "x", "y"))
        assert found is not None
        covered += found.low <= 20 <= found.high
    _is_at_least_nominal(covered)
