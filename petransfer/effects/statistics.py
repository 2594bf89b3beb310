"""Tests over seeds: permutation test, Holm, equivalence, log-odds, McNemar, and the number of seeds needed."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from petransfer.effects.intervals import Interval, Scores, Weights, degrees_of_freedom, log_odds_of
from petransfer.effects.seed_counts import LEVEL, MOST_PERMUTATIONS, MOST_SEEDS, fewest_for_verdict, fewest_seeds


def permutation_p(left: Scores, right: Scores, *, paired: bool = False) -> float:
    """Compute the two-sided p value of the exact permutation test of two means. 1 if a group has a single seed.

    The null hypothesis is that the seeds of the two groups come from one distribution.

    Args:
        left, right: (seeds,) scores of the two groups.
        paired: whether `left[i]` and `right[i]` have equal seeds.

    Raises:
        ValueError: the groups are paired but differ in size.
    """
    if paired and len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} seeds cannot be paired")
    if min(len(left), len(right)) < 2:
        return 1.0
    return _permutation_p(tuple(left.tolist()), tuple(right.tolist()), paired)


@functools.lru_cache(maxsize=1024)  # a report asks for each p value several times
def _permutation_p(left: tuple[float, ...], right: tuple[float, ...], paired: bool) -> float:
    # Two-sided means twice the smaller tail, because a verdict with a direction needs half of the level for each
    # direction. Another definition counts permutations by the absolute difference. The two definitions differ for
    # groups of unequal size.
    kind = "samples" if paired else "independent"
    with warnings.catch_warnings():  # SciPy warns about identical scores; the p value is still correct
        warnings.simplefilter("ignore")
        found = stats.permutation_test(
            (left, right),
            _mean_difference,
            permutation_type=kind,
            vectorized=True,
            n_resamples=MOST_PERMUTATIONS,
            random_state=0,
        )
    return float(found.pvalue)


def _mean_difference(left: Scores, right: Scores, axis: int) -> Scores:
    # Rounding makes differences compare as equal if only floating-point errors distinguish them.
    difference: Scores = np.round(left.mean(axis) - right.mean(axis), 12)
    return difference


def holm(p_values: Sequence[float | None], waiting: int = 0) -> list[float | None]:
    """Adjust p values for multiple testing (Holm 1979). None means not tested and stays None.

    Args:
        waiting: number of further tests whose p values are not known yet. Any of them could be the largest p value, so
            the known p values are adjusted for all of them.
    """
    # The function of statsmodels is not used, because it runs Python's garbage collection at every call, which takes up
    # to half a second.
    tested = np.array([value for value in p_values if value is not None])
    order = np.argsort(tested)
    multiplied = tested[order] * (np.arange(len(tested), 0, -1) + waiting)
    adjusted = np.empty(len(tested))
    adjusted[order] = np.minimum(np.maximum.accumulate(multiplied), 1)
    values = iter(adjusted.tolist())
    return [None if value is None else next(values) for value in p_values]


def equivalence_p(left: Scores, right: Scores, margin: float, *, paired: bool = False) -> float | None:
    """Compute the p value of an equivalence test (TOST) of two means. None if there are too few seeds.

    A small p value shows that the means differ by less than `margin`.

    Args:
        left, right: (seeds,) scores of the two groups.
        margin: equivalence margin in the unit of the scores.
        paired: whether `left[i]` and `right[i]` have equal seeds.
    """
    if min(len(left), len(right)) < fewest_for_verdict(paired=paired):
        return None
    # Welch's t, or Student's t of the differences for pairs
    flat = (left - right).var() == 0 if paired else left.var() == 0 and right.var() == 0
    if flat:
        return 0.0 if abs(float(left.mean() - right.mean())) < margin else 1.0
    with warnings.catch_warnings():  # SciPy warns that nearly identical scores lose precision; the p is then 0 or 1
        warnings.simplefilter("ignore")
        if paired:
            return float(ttost_paired(left, right, -margin, margin)[0])
        return float(ttost_ind(left, right, -margin, margin, usevar="unequal")[0])


def seeds_needed(
    left: Scores, right: Scores, tests: int, margin: float, power: float = 0.8, *, paired: bool = False
) -> int | None:
    """Compute how many seeds per group are needed to detect a difference of two means. At most 1,000 seeds.

    Args:
        left, right: (seeds,) scores of the two groups.
        tests: number of effects that are tested together.
        margin: smallest difference to plan for, in the unit of the scores.
        power: probability of detecting the difference.
        paired: whether `left[i]` and `right[i]` have equal seeds.

    Returns:
        The number of seeds. None if a group has a single seed.
    """
    if min(len(left), len(right)) < 2:
        return None
    alpha = LEVEL / tests
    # The standard deviation is pooled over the groups. For pairs, it is that of the differences.
    variance = (left - right).var(ddof=1) if paired else (left.var(ddof=1) + right.var(ddof=1)) / 2
    size = max(abs(float(left.mean() - right.mean())), margin) / max(math.sqrt(variance), 1e-9)
    test = TTestPower() if paired else TTestIndPower()
    # With fewer than `fewest_seeds`, the permutation test cannot reach significance.
    for seeds in range(fewest_seeds(tests, paired=paired), MOST_SEEDS):
        # `not ... <`: for some large effects the power is almost 1, but statsmodels returns NaN
        if not test.power(min(size, 4.0), seeds, alpha) < power:
            return seeds
    return MOST_SEEDS


@dataclass(frozen=True)
class Odds:
    """The difference of two groups' mean log-odds.

    Attributes:
        difference: left minus right, in nats.
        interval: 95 % interval of the difference. None for a single seed, or for seeds that do not vary.
        p: p value of the permutation test.
    """

    difference: float
    interval: Interval | None
    p: float


def log_odds(left: Scores, right: Scores, examples: int, *, paired: bool = False) -> Odds:
    """Compare the mean log-odds of two groups of seeds.

    Near 0 % and 100 %, log-odds show differences that percentage points hide.

    Args:
        left, right: (seeds,) shares of correct answers of the two groups, 0 to 1.
        examples: number of answers in each share.
        paired: whether `left[i]` and `right[i]` have equal seeds.
    """
    both = [log_odds_of(share, examples) for share in (left, right)]
    difference = float(both[0].mean() - both[1].mean())
    p = permutation_p(both[0], both[1], paired=paired)
    if (
        min(len(left), len(right)) < 2
        or all(side.var() == 0 for side in both)
        or (paired and np.ptp(both[0] - both[1]) == 0)
    ):
        return Odds(difference, None, p)
    with warnings.catch_warnings():  # SciPy warns about nearly identical values; the precision is enough
        warnings.simplefilter("ignore")
        found = stats.ttest_rel(*both) if paired else stats.ttest_ind(*both, equal_var=False)
    interval = found.confidence_interval(0.95)
    return Odds(difference, Interval(float(interval.low), float(interval.high)), p)


@dataclass(frozen=True)
class McNemarResult:
    """The result of McNemar's exact test on two runs, left and right.

    `only_left`, `only_right`: numbers of examples that only one of the runs answers correctly.
    """

    only_left: int
    only_right: int
    p: float


def mcnemar_test(left: Scores, right: Scores) -> McNemarResult:
    """Compare two runs by McNemar's exact test. `left`, `right`: (examples,) exact match, 0 or 1."""
    only_left, only_right = int(((left == 1) & (right == 0)).sum()), int(((left == 0) & (right == 1)).sum())
    same = len(left) - only_left - only_right
    found = mcnemar([[same, only_left], [only_right, 0]], exact=True)
    return McNemarResult(only_left, only_right, min(1.0, float(found.pvalue)))


def welch_p(seeds: Mapping[str, Scores], weights: Weights, against: float = 0.0) -> float | None:
    """Compute the two-sided p value of a Welch-Satterthwaite t test of a weighted sum of means.

    Args:
        seeds: for the key of each group, an array of scores, one per seed. At least two seeds per group.
        weights: weight of each group's mean, by key.
        against: value of the weighted sum under the null hypothesis.

    Returns:
        The p value. None if no group varies between its seeds.
    """
    error = math.sqrt(sum(weights[key] ** 2 * one.var(ddof=1) / len(one) for key, one in seeds.items()))
    if error == 0:
        return None
    total = sum(weights[key] * float(one.mean()) for key, one in seeds.items())
    freedom = degrees_of_freedom({key: one[:, None] for key, one in seeds.items()}, weights)
    return float(2 * stats.t.sf(abs(total - against) / error, freedom))
