"""Statistical tests, compared with simulated studies, exact counts, SciPy and statsmodels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from petransfer.effects.seed_counts import SeedDemand, fewest_seeds, smallest_p
from petransfer.effects.statistics import (
    equivalence_p,
    holm,
    log_odds,
    mcnemar_test,
    permutation_p,
    seeds_needed,
    welch_p,
)


def test_equivalence_and_needed_seeds_are_none_for_one_seed() -> None:
    assert equivalence_p(np.ones(3), np.ones(9), 5.0) is None
    assert seeds_needed(np.ones(1), np.zeros(4), 1, 5.0) is None


@given(st.lists(st.integers(0, 40), min_size=2, max_size=4), st.lists(st.integers(0, 40), min_size=2, max_size=4))
def test_the_permutation_p_value_equals_the_count_over_all_permutations(first: list[int], second: list[int]) -> None:
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


def test_the_permutation_test_keeps_its_level_under_the_null_hypothesis() -> None:
    rng = np.random.default_rng(3)
    hits = [permutation_p(rng.standard_normal(5), rng.standard_normal(5)) < 0.05 for _ in range(600)]
    assert np.mean(hits) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_paired_seeds_are_compared_pair_by_pair() -> None:
    base = np.array([0.1, 0.5, 0.9, 0.3, 0.7, 0.2])
    better = base + 0.05
    assert permutation_p(better, base, paired=True) == pytest.approx(2 / 2**6)
    assert permutation_p(better, base) > 0.5
    with pytest.raises(ValueError, match="cannot be paired"):
        permutation_p(better, base[:-1], paired=True)


@pytest.mark.parametrize(("seeds", "p"), [(1, 1.0), (3, 0.1), (5, 2 / 252), (6, 2 / 924)])
def test_the_smallest_possible_p_value_of_equal_groups(seeds: int, p: float) -> None:
    assert smallest_p(seeds, seeds) == pytest.approx(p)
    if seeds > 1:
        assert permutation_p(np.arange(seeds) + 100.0, np.arange(seeds) * 1.0) == pytest.approx(p)


@pytest.mark.parametrize(("left", "right"), [(2, 4), (3, 4), (4, 3), (5, 6), *itertools.product((2, 5), (2, 3, 7))])
def test_unequal_groups_reach_the_smallest_p_value_and_no_smaller_one(left: int, right: int) -> None:
    """The difference is largest if every seed of one group is above every seed of the other group."""
    apart = permutation_p(np.arange(left) + 100.0, np.arange(right) * 1.0)
    assert apart == pytest.approx(smallest_p(left, right)) == pytest.approx(2 / math.comb(left + right, left))
    rng = np.random.default_rng(left * right)
    drawn = [permutation_p(rng.random(left), rng.random(right)) for _ in range(30)]
    assert min(drawn) >= smallest_p(left, right) - 1e-12


@pytest.mark.parametrize(("left", "right", "paired"), [(9, 9, False), (3, 60, False), (15, 15, True)])
def test_random_permutations_limit_the_smallest_p_value(left: int, right: int, paired: bool) -> None:
    assert smallest_p(left, right, paired=paired) == 2 / 20_001
    apart = permutation_p(np.arange(left) + 100.0, np.arange(right) / 100, paired=paired)
    assert 2 / 20_001 <= apart < 0.001


def test_holm_of_known_p_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.01, None, 0.002], waiting=3) == pytest.approx([0.04, None, 0.01])


def test_holm_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        values = np.round(rng.random(count) ** 3, 2)  # some are equal, and some exceed 1 when multiplied
        assert holm(values.tolist()) == multipletests(values, method="holm")[1].tolist()


def test_equivalence_needs_a_difference_below_the_margin() -> None:
    rng = np.random.default_rng(4)
    near, far = 50 + rng.standard_normal(8), 53 + rng.standard_normal(8)
    assert (equivalence_p(near, near + 0.5, 5.0) or 0) < 0.001
    assert (equivalence_p(near, far, 2.0) or 0) > 0.5
    assert equivalence_p(np.full(4, 50.0), np.full(4, 52.0), 5.0) == 0.0
    assert equivalence_p(np.full(4, 50.0), np.full(4, 56.0), 5.0) == 1.0
    expected = max(
        stats.ttest_ind(near, far - 5, equal_var=False, alternative="greater").pvalue,
        stats.ttest_ind(near, far + 5, equal_var=False, alternative="less").pvalue,
    )
    assert equivalence_p(near, far, 5.0) == pytest.approx(expected, rel=1e-6)


def test_equal_means_are_not_equivalent_if_the_seeds_differ_much() -> None:
    scores = np.array([30.0, 70.0, 40.0, 60.0, 35.0, 65.0])
    assert (equivalence_p(scores, scores[::-1], 5.0) or 0) > 0.3
    assert (equivalence_p(scores, scores[::-1], 25.0) or 1) < 0.05
    assert (equivalence_p(scores, scores[::-1], 5.0, paired=True) or 0) > 0.3


def test_the_needed_seeds_give_the_power_in_a_t_test() -> None:
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
    assert (
        seeds_needed(np.full(3, 9.0), np.full(3, 50.0), tests=7, margin=5.0) == 6
    )  # with fewer seeds, the permutation test cannot reject


def test_the_paired_permutation_test_keeps_its_level_under_the_null_hypothesis() -> None:
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(600):
        common = rng.standard_normal(7)
        sides = [common + 0.3 * rng.standard_normal(7) for _ in range(2)]
        hits.append(permutation_p(*sides, paired=True) < 0.05)
    assert np.mean(hits) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_the_needed_pairs_of_seeds_give_the_power() -> None:
    rng = np.random.default_rng(8)
    differences = np.array([2.0, 5.0, 9.0, 4.0, 8.0, 6.0])
    left, right = 40 + differences, np.full(6, 40.0)
    needed = seeds_needed(left, right, tests=1, margin=1.0, paired=True)
    assert needed is not None
    hits = []
    for _ in range(300):
        drawn = differences.mean() + differences.std(ddof=1) * rng.standard_normal(needed)
        hits.append(permutation_p(drawn, np.zeros(needed), paired=True) < 0.05)
    assert np.mean(hits) >= 0.8 - 3 * math.sqrt(0.8 * 0.2 / 300)
    assert needed == fewest_seeds(1, paired=True) == 6


@pytest.mark.slow
def test_the_needed_seeds_give_the_power_in_the_permutation_test() -> None:
    rng = np.random.default_rng(9)
    left, right = np.array([60.0, 48.0, 55.0, 51.0]), np.array([46.0, 40.0, 49.0, 43.0])
    needed = seeds_needed(left, right, tests=1, margin=1.0)
    assert needed is not None
    spread = math.sqrt((left.var(ddof=1) + right.var(ddof=1)) / 2)
    hits = []
    for _ in range(300):
        sides = [mean + spread * rng.standard_normal(needed) for mean in (left.mean(), right.mean())]
        hits.append(permutation_p(*sides) < 0.05)
    assert abs(np.mean(hits) - 0.8) < 0.1


@pytest.mark.parametrize(("tests", "unpaired", "paired"), [(1, 4, 6), (7, 6, 9), (8, 6, 9), (40, 7, 11)])
def test_the_fewest_seeds_with_which_a_family_can_be_significant(tests: int, unpaired: int, paired: int) -> None:
    assert fewest_seeds(tests) == unpaired
    assert fewest_seeds(tests, paired=True) == paired
    assert smallest_p(unpaired, unpaired) * tests < 0.05 <= smallest_p(unpaired - 1, unpaired - 1) * tests
    assert permutation_p(np.arange(paired) + 9.0, np.zeros(paired), paired=True) == smallest_p(
        paired, paired, paired=True
    )


def test_a_study_with_too_few_seeds_gets_a_warning() -> None:
    assert SeedDemand(unpaired=((6, 6),) * 7).line == ""
    assert SeedDemand().line == ""
    assert "7 effects are tested together (Holm). With 5 seeds, no effect can" in SeedDemand(((5, 5),) * 7).line
    assert SeedDemand(((6, 6),) * 6, (6,)).line.endswith("Use at least 9 seeds: --seeds 0-8")
    two_arms_and_two_methods = SeedDemand(((5, 5),), (5,)).line  # the effect between arms can have p = 2 x 2 / 252
    assert "no effect with pairs of seeds can reach p < 0.05" in two_arms_and_two_methods
    assert "the smallest possible p is 0.125" in two_arms_and_two_methods
    assert "With 3 seeds, no effect can reach p < 0.05, however large it is: the smallest possible p is 0.200" in (
        SeedDemand(((3, 3),), (3,)).line
    )
    assert "No number of seeds is enough for so many effects" in SeedDemand(((20, 20),) * 501).line


def test_a_control_with_more_seeds_can_be_enough() -> None:
    # with four and eight seeds, the smallest p value is 2 / 495; with four and seven, 2 / 330
    assert SeedDemand(((4, 4), *((4, 8),) * 9)).line == ""
    warning = SeedDemand(((4, 4), *((4, 7),) * 9)).line
    assert "With 4 to 7 seeds per arm, no effect can reach p < 0.05" in warning
    assert warning.endswith("the smallest possible p is 0.061. Use at least 6 seeds per arm: --seeds 0-5")
    assert "no effect with pairs of seeds can reach" in SeedDemand(((4, 8),) * 9, (4,)).line
    assert "no effect without pairs of seeds can reach" in SeedDemand(((4, 4),), (9,)).line
    assert SeedDemand(((4, 8),), (4, 9)).line == ""


def test_three_seeds_of_an_arm_are_too_few_for_a_verdict_with_any_number_of_seeds_of_the_control() -> None:
    assert smallest_p(3, 9) * 2 < 0.05
    needs = "can be decided, however large it is: this needs p < 0.05 and 4 seeds on each side"
    assert f"With 3 to 9 seeds per arm, no effect {needs}" in SeedDemand(((3, 9),) * 2).line
    assert f"no effect {needs}" in SeedDemand(((3, 20), (4, 4))).line
    assert SeedDemand(((3, 20), (4, 9))).line == ""


def test_equal_differences_in_points_give_larger_log_odds_near_zero() -> None:
    low = log_odds(np.array([0.02, 0.03, 0.025]), np.array([0.001, 0.002, 0.0]), 1000)
    middle = log_odds(np.array([0.52, 0.53, 0.525]), np.array([0.501, 0.502, 0.5]), 1000)
    assert low.difference > 2
    assert middle.difference < 1
    assert low.interval is not None
    assert low.interval.low > 0
    by_hand = (
        np.log([20.5 / 980.5, 30.5 / 970.5, 25.5 / 975.5]).mean()
        - np.log([1.5 / 999.5, 2.5 / 998.5, 0.5 / 1000.5]).mean()
    )
    assert low.difference == pytest.approx(by_hand)
    assert log_odds(np.ones(3), np.zeros(3), 10).interval is None
    assert log_odds(np.ones(1), np.zeros(1), 10).interval is None
    assert math.isfinite(log_odds(np.ones(3), np.zeros(3), 10).difference)


def test_two_runs_are_compared_example_by_example() -> None:
    left = np.array([1.0] * 60 + [0.0] * 40)
    right = np.array([1.0] * 48 + [0.0] * 12 + [1.0] * 2 + [0.0] * 38)
    found = mcnemar_test(left, right)
    assert (found.only_left, found.only_right) == (12, 2)
    assert found.p == pytest.approx(stats.binomtest(2, 14).pvalue)
    assert mcnemar_test(left, left).p == 1.0


def test_welchs_test_of_two_groups_agrees_with_scipy() -> None:
    rng = np.random.default_rng(10)
    left, right = rng.standard_normal(5) + 1, 2 * rng.standard_normal(8)
    assert welch_p({"a": left, "b": right}, {"a": 1.0, "b": -1.0}) == pytest.approx(
        stats.ttest_ind(left, right, equal_var=False).pvalue
    )
    assert welch_p({"a": np.ones(3), "b": np.zeros(3)}, {"a": 1.0, "b": -1.0}) is None
