"""Intervals of simulated studies whose true difference is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit

from petransfer.effects import intervals
from petransfer.effects.intervals import Interval, drawn_means, drawn_seed_means, paired_interval, sum_interval

EXAMPLES = 60
CATEGORIES = np.arange(EXAMPLES) % 3
LESS = {"left": 1.0, "right": -1.0}


def difference(left: np.ndarray, right: np.ndarray, categories: np.ndarray, seed: int = 0) -> Interval | None:
    return sum_interval({"left": left, "right": right}, LESS, categories, len(categories), draws=400, seed=seed)


def simulate(rng: np.random.Generator, seeds: int, mean: float, spread: float, examples: int = EXAMPLES) -> np.ndarray:
    """Draw an array (seeds, examples) of 0 and 1. Each seed has its own level, and the examples add noise."""
    levels = np.clip(mean + spread * rng.standard_normal((seeds, 1)), 0, 1)
    return (rng.random((seeds, examples)) < levels).astype(float)


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_interval_contains_the_true_difference_at_its_nominal_rate(seeds: int) -> None:
    """150 simulated studies have scores near 50 %. The rate may be three standard errors below 95 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for study in range(150):
        left, right = (simulate(rng, seeds, mean, spread, 200) for mean, spread in ((0.6, 0.1), (0.4, 0.07)))
        interval = difference(left, right, np.arange(200) % 3, study)
        assert interval is not None
        covered += interval.low <= 0.2 <= interval.high
    assert covered / 150 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150)


@pytest.mark.parametrize(("centre", "spread"), [(-3.5, 2.0), (-1.7, 1.2), (-4.1, 0.7)])
def test_the_interval_contains_the_true_mean_of_skewed_seeds_unlike_a_bootstrap(centre: float, spread: float) -> None:
    """Six seeds have normal log-odds like the shipped studies: code and English, LoRA and full fine-tuning."""
    rng = np.random.default_rng(1)
    truth = float(expit(centre + spread * rng.standard_normal(400_000)).mean())
    covered = {"ours": 0, "bootstrap": 0}
    for _ in range(400):
        shares = rng.binomial(4476, expit(centre + spread * rng.standard_normal(6))) / 4476
        for name, drawn in (
            ("ours", drawn_seed_means(shares, 4476, 500, rng)),
            ("bootstrap", rng.choice(shares, (500, 6)).mean(1)),
        ):
            low, high = np.quantile(drawn, [0.025, 0.975])
            covered[name] += low <= truth <= high
    assert covered["ours"] / 400 > 0.9
    assert covered["bootstrap"] / 400 < 0.87


def test_more_seeds_and_more_examples_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)

    def width(seeds: int, examples: int) -> float:
        widths = []
        for _ in range(20):
            left, right = (rng.random((seeds, examples)) < level for level in (0.6, 0.4))
            interval = difference(left * 1.0, right * 1.0, np.zeros(examples, dtype=int))
            assert interval is not None
            widths.append(interval.high - interval.low)
        return float(np.mean(widths))

    assert width(3, 60) > width(8, 60)
    assert width(6, 60) > 1.5 * width(6, 600)


def test_examples_are_drawn_within_their_category() -> None:
    """If the category decides whether an example is correct, drawing within categories adds no variance."""
    left = np.tile(CATEGORIES == 0, (3, 1)).astype(float)
    interval = difference(left, np.zeros_like(left), CATEGORIES)
    assert interval is not None
    assert interval.low == pytest.approx(interval.high) == pytest.approx(1 / 3)
    loose = difference(left, np.zeros_like(left), np.zeros(EXAMPLES, dtype=int))
    assert loose is not None
    assert loose.high - loose.low > 0.1


def test_an_interval_does_not_depend_on_earlier_intervals() -> None:
    """The draws of examples are cached for all effects. The order of the calls must not change the result."""
    rng = np.random.default_rng(3)
    left, right = simulate(rng, 4, 0.6, 0.1), simulate(rng, 4, 0.4, 0.1)
    asked = [(categories, at) for at in (0, 1) for categories in (CATEGORIES, CATEGORIES * 0, CATEGORIES[::-1])]
    alone = []
    for each in asked:
        intervals._example_counts.cache_clear()
        alone.append(difference(left, right, *each))
    assert len(set(alone)) == len(asked)
    assert [difference(left, right, *each) for each in (*asked, *asked)] == [*alone, *alone]


def test_one_seed_has_no_interval() -> None:
    assert difference(np.ones((1, 9)), np.zeros((6, 9)), np.zeros(9, dtype=int)) is None
    assert paired_interval(np.ones((1, 9)), np.zeros((1, 9)), np.zeros(9, dtype=int)) is None


def test_a_paired_interval_contains_the_true_difference_at_its_nominal_rate() -> None:
    """In 150 simulated studies, a seed changes both methods alike. Pairing makes the interval much narrower."""
    rng = np.random.default_rng(6)
    covered, widths = 0, {True: 0.0, False: 0.0}
    for study in range(150):
        common = 0.15 * rng.standard_normal((6, 1))
        own = (0.6 + 0.05 * rng.standard_normal((6, 1)), 0.5 + 0.05 * rng.standard_normal((6, 1)))
        left, right = ((rng.random((6, 200)) < mean + common).astype(float) for mean in own)
        found = paired_interval(left, right, np.zeros(200, dtype=int), draws=500, seed=study)
        assert found is not None
        covered += found.low <= 0.1 <= found.high
        if study < 20:
            apart = difference(left, right, np.zeros(200, dtype=int))
            assert apart is not None
            widths[True] += found.high - found.low
            widths[False] += apart.high - apart.low
    assert abs(covered / 150 - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / 150)
    assert widths[True] < 0.7 * widths[False]


def test_an_interval_has_only_possible_differences() -> None:
    """Two pairs of seeds that differ a lot give a t interval of more than 100 points on each side."""
    left, right = np.array([[1.0], [0.0]]), np.array([[0.2], [0.4]])
    assert paired_interval(left, right, np.zeros(1, dtype=int)) == Interval(-1.0, 1.0)
    assert intervals.possible({"a": 1.0, "b": -2.0}) == Interval(-2.0, 1.0)


def test_samples_are_drawn_once_per_key() -> None:
    rng = np.random.default_rng(4)
    shared = simulate(rng, 6, 0.3, 0.1)
    drawn = drawn_means({"a": shared, "b": shared.copy()}, CATEGORIES, EXAMPLES, draws=300)
    assert np.corrcoef(drawn["a"], drawn["b"])[0, 1] < 0.9  # two keys are drawn separately, even with equal scores
    same = sum_interval({"a": shared}, {"a": 0.0}, CATEGORIES, EXAMPLES)
    assert same == Interval(0.0, 0.0)
