"""The statistics against simulated studies, hand counts and SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from petransfer.effects.counts import smallest_p
from petransfer.effects.statistics import (
    difference_interval,
    equivalence_p,
    holm,
    permutation_p,
    seeds_needed,
)

EXAMPLES = 60
CATEGORIES = np.arange(EXAMPLES) % 3


def simulate(rng: np.random.Generator, seeds: int, mean: float, spread: float, examples: int = EXAMPLES) -> np.ndarray:
    """(seeds, examples) of 0 and 1: each seed has a level of its own, by the examples' noise it comes near to it."""
    levels = mean + spread * rng.standard_normal((seeds, 1))
    return (rng.random((seeds, examples)) < np.clip(levels, 0, 1)).astype(float)


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_interval_covers_the_truth_at_its_rate(seeds: int) -> None:
    """1,000 simulated studies on examples as many as a test set has: 95 %, give or take three errors of the count."""
    rng = np.random.default_rng(0)
    truth, covered = 0.2, 0
    for study in range(1000):
        left, right = (simulate(rng, seeds, mean, spread, 400) for mean, spread in ((0.6, 0.1), (0.4, 0.07)))
        interval = difference_interval(left, right, np.arange(400) % 3, draws=200, seed=study)
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert abs(covered / 1000 - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / 1000)


def test_a_plain_bootstrap_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the seeds are stretched: three seeds, plain percentiles, far too narrow."""
    rng = np.random.default_rng(1)
    covered = {"ours": 0, "plain": 0}
    for study in range(300):
        left, right = simulate(rng, 3, 0.6, 0.15), simulate(rng, 3, 0.4, 0.15)
        ours = difference_interval(left, right, CATEGORIES, draws=300, seed=study)
        assert ours is not None
        covered["ours"] += ours.low <= 0.2 <= ours.high
        means = [group.mean(1)[rng.integers(3, size=(300, 3))].mean(1) for group in (left, right)]
        low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
        covered["plain"] += low <= 0.2 <= high
    assert covered["ours"] / 300 > 0.9
    assert covered["plain"] / 300 < 0.88


def test_more_seeds_and_more_examples_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)

    def width(seeds: int, examples: int) -> float:
        widths = []
        for _ in range(20):
            left, right = (rng.random((seeds, examples)) < level for level in (0.6, 0.4))
            interval = difference_interval(left * 1.0, right * 1.0, np.zeros(examples, dtype=int), draws=300)
            assert interval is not None
            widths.append(interval.high - interval.low)
        return float(np.mean(widths))

    assert width(3, 60) > width(8, 60)
    assert width(6, 60) > 1.5 * width(6, 600)


def test_categories_bound_what_is_drawn() -> None:
    """Where a category decides everything, drawing within categories leaves nothing to chance."""
    left = np.tile(CATEGORIES == 0, (3, 1)).astype(float)
    interval = difference_interval(left, np.zeros_like(left), CATEGORIES, draws=200)
    assert interval is not None
    assert interval.low == pytest.approx(interval.high) == pytest.approx(1 / 3)
    loose = difference_interval(left, np.zeros_like(left), np.zeros(EXAMPLES, dtype=int), draws=200)
    assert loose is not None
    assert loose.high - loose.low > 0.1


def test_one_seed_has_no_interval() -> None:
    assert difference_interval(np.ones((1, 9)), np.zeros((6, 9)), np.zeros(9, dtype=int)) is None
    assert equivalence_p(np.ones(1), np.zeros(4), 5.0) is None
    assert seeds_needed(np.ones(1), np.zeros(4), 1, 5.0) is None


@given(st.lists(st.integers(0, 40), min_size=2, max_size=4), st.lists(st.integers(0, 40), min_size=2, max_size=4))
def test_the_permutation_p_is_the_count_over_all_deals(first: list[int], second: list[int]) -> None:
    left, right = np.array(first) / 40, np.array(second) / 40
    pool = np.concatenate([left, right])
    seen = left.mean() - right.mean()
    deals = []
    for chosen in itertools.combinations(range(len(pool)), len(left)):
        mine = np.isin(np.arange(len(pool)), chosen)
        deals.append(pool[mine].mean() - pool[~mine].mean())
    larger = np.mean([deal >= seen - 1e-9 for deal in deals])
    smaller = np.mean([deal <= seen + 1e-9 for deal in deals])
    assert permutation_p(left, right) == pytest.approx(min(1.0, 2 * min(larger, smaller)))


def test_the_permutation_test_holds_its_level_under_the_null() -> None:
    rng = np.random.default_rng(3)
    hits = [permutation_p(rng.standard_normal(5), rng.standard_normal(5)) < 0.05 for _ in range(600)]
    assert np.mean(hits) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_paired_runs_are_compared_pair_by_pair() -> None:
    base = np.array([0.1, 0.5, 0.9, 0.3, 0.7, 0.2])
    better = base + 0.05
    assert permutation_p(better, base, paired=True) == pytest.approx(2 / 2**6)
    assert permutation_p(better, base) > 0.5
    with pytest.raises(ValueError, match="cannot be paired"):
        permutation_p(better, base[:-1], paired=True)


@pytest.mark.parametrize(("seeds", "p"), [(1, 1.0), (3, 0.1), (5, 2 / 252), (6, 2 / 924)])
def test_the_smallest_p_of_so_many_seeds(seeds: int, p: float) -> None:
    assert smallest_p(seeds, seeds) == pytest.approx(p)
    if seeds > 1:
        assert permutation_p(np.arange(seeds) + 100.0, np.arange(seeds) * 1.0) == pytest.approx(p)


def test_unequal_groups_reach_what_is_said() -> None:
    assert permutation_p(np.arange(2) + 100.0, np.arange(4) * 1.0) >= smallest_p(2, 4)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_equivalence_needs_a_small_difference_and_a_small_spread() -> None:
    rng = np.random.default_rng(4)
    near, far = 50 + rng.standard_normal(8), 53 + rng.standard_normal(8)
    assert (equivalence_p(near, near + 0.5, 5.0) or 0) < 0.001
    assert (equivalence_p(near, far, 2.0) or 0) > 0.5
    assert equivalence_p(np.full(3, 50.0), np.full(3, 52.0), 5.0) == 0.0
    assert equivalence_p(np.full(3, 50.0), np.full(3, 56.0), 5.0) == 1.0
    expected = max(
        stats.ttest_ind(near, far - 5, equal_var=False, alternative="greater").pvalue,
        stats.ttest_ind(near, far + 5, equal_var=False, alternative="less").pvalue,
    )
    assert equivalence_p(near, far, 5.0) == pytest.approx(expected, rel=1e-6)


def test_the_seeds_needed_have_the_power() -> None:
    rng = np.random.default_rng(5)
    left, right = 50 + 6 * rng.standard_normal(4), 42 + 6 * rng.standard_normal(4)
    needed = seeds_needed(left, right, tests=1, margin=5.0)
    assert needed is not None
    spread = math.sqrt((left.var(ddof=1) + right.var(ddof=1)) / 2)
    difference = max(abs(left.mean() - right.mean()), 5.0)
    hits = [
        stats.ttest_ind(
            difference + spread * rng.standard_normal(needed), spread * rng.standard_normal(needed)
        ).pvalue < 0.05
        for _ in range(1500)
    ]  # fmt: skip
    assert np.mean(hits) >= 0.76
    assert (seeds_needed(left, right, tests=7, margin=5.0) or 0) > needed
    assert seeds_needed(np.full(3, 9.0), np.full(3, 50.0), tests=7, margin=5.0) == 6  # the permutation test's floor
