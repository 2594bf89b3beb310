"""Tests over seeds: permutation, Holm, equivalence, log-odds, McNemar, and the number of seeds needed.

SciPy and statsmodels compute the tests. Intervals are in `intervals.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from petransfer.effects.intervals import Interval, Scores, Weights, degrees_of_freedom, log_odds_of
from petransfer.effects.seed_counts import LEVEL, MOST_DEALS, MOST_SEEDS, fewest_for_equivalence, fewest_seeds


def permutation_p(left: Scores, right: Scores, *, paired: bool = False) -> float:
    """Compute the two-sided p value of the exact permutation test for the difference of two groups' mean scores.

    Null hypothesis: the seeds of both groups come from one distribution. The test can also reject if the means are
    equal and only the spread differs.

    Two-sided: the p value is twice the smaller tail. Each direction then has half of the significance level, which a
    verdict with a direction requires. Another definition counts the permutations whose absolute difference is at least
    as large as the observed absolute difference. The two definitions agree for groups of equal size, but not for other
    groups.

    If there are more than 20,000 permutations, 20,000 are drawn at random.

    Args:
        left: (seeds,) scores of the first group.
        right: (seeds,) scores of the second group.
        paired: whether `left[i]` and `right[i]` have the same seed. If so, the permutations are all choices of signs of
            the differences. If not, they are all ways to split the seeds into two groups of these sizes.

    Returns:
        The p value; 1 if a group has a single seed.

    Raises:
        ValueError: the groups are paired but differ in size.
    """
    if paired and len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} seeds cannot be paired")
    if min(len(left), len(right)) < 2:
        return 1.0
    kind = "samples" if paired else "independent"
    with warnings.catch_warnings():  # SciPy warns about identical scores; the p value is still correct
        warnings.simplefilter("ignore")
        found = stats.permutation_test(
            (left, right),
            _mean_difference,
            permutation_type=kind,
            vectorized=True,
            n_resamples=MOST_DEALS,
            random_state=0,
        )
    return float(found.pvalue)


def _mean_difference(left: Scores, right: Scores, axis: int) -> Scores:
    # Rounding makes differences compare as equal if only floating-point errors distinguish them.
    difference: Scores = np.round(left.mean(axis) - right.mean(axis), 12)
    return difference


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for multiple testing (Holm 1979). None stands for an effect that is not tested; it stays None."""
    tested = [value for value in p_values if value is not None]
    adjusted = iter(multipletests(tested, method="holm")[1] if tested else ())
    return [None if value is None else float(next(adjusted)) for value in p_values]


def equivalence_p(left: Scores, right: Scores, margin: float, *, paired: bool = False) -> float | None:
    """Compute the p value of an equivalence test (TOST, two one-sided t tests) of two groups' mean scores.

    A small p value shows that the means differ by less than `margin`, which has the unit of the scores. The test uses
    Welch's t, or Student's t of the differences if seeds are paired. Returns None if there are too few seeds.
    """
    if min(len(left), len(right)) < fewest_for_equivalence(paired=paired):
        return None
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
    """Compute how many seeds per group are needed to detect the difference of two groups' means; at most 1,000.

    The computation assumes the observed difference, but at least `margin`. The significance level is 0.05 / `tests`
    (Holm). The standard deviation is pooled over both groups; if seeds are paired, it is the standard deviation of the
    differences. The result is never below the number of seeds that the permutation test needs to be able to reach
    significance.

    Args:
        left: (seeds,) scores of the first group.
        right: (seeds,) scores of the second group.
        tests: number of effects that are tested together.
        margin: the smallest difference to plan for, in the unit of the scores.
        power: the probability with which the difference is to be detected.
        paired: whether `left[i]` and `right[i]` have the same seed.

    Returns:
        The number of seeds, or None if a group has a single seed and thus no standard deviation.
    """
    if min(len(left), len(right)) < 2:
        return None
    alpha = LEVEL / tests
    variance = (left - right).var(ddof=1) if paired else (left.var(ddof=1) + right.var(ddof=1)) / 2
    size = max(abs(float(left.mean() - right.mean())), margin) / max(math.sqrt(variance), 1e-9)
    test = TTestPower() if paired else TTestIndPower()
    for seeds in range(fewest_seeds(tests, paired=paired), MOST_SEEDS):
        # `not ... <`: for some large effects the power is almost 1, but statsmodels returns NaN
        if not test.power(min(size, 4.0), seeds, alpha) < power:
            return seeds
    return MOST_SEEDS


@dataclass(frozen=True)
class Odds:
    """The difference of two groups' mean log-odds, in nats; each mean is over seeds.

    interval: the 95 % confidence interval by Welch's t, or by Student's t of the differences if seeds are paired. None
    if a group has a single seed, or if nothing varies between seeds. p: the p value of the permutation test.
    """

    difference: float
    interval: Interval | None
    p: float


def log_odds(left: Scores, right: Scores, examples: int, *, paired: bool = False) -> Odds:
    """Compare the log-odds of a correct answer between two groups of seeds.

    Near 0 % and 100 %, log-odds show differences that percentage points hide.

    Args:
        left: (seeds,) the share of correct answers of each seed of the first group, from 0 to 1.
        right: (seeds,) the shares of the second group.
        examples: number of answers in each share.
        paired: whether `left[i]` and `right[i]` have the same seed.
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
class PairOfRuns:
    """The result of McNemar's exact test on two runs.

    only_left, only_right: number of examples that only the left run or only the right run answers correctly.
    """

    only_left: int
    only_right: int
    p: float


def pair_of_runs(left: Scores, right: Scores) -> PairOfRuns:
    """Compare two runs example by example (McNemar's exact test).

    The result holds for these two runs only, not for other seeds. left, right: (examples,) exact match, 0 or 1.
    """
    only_left, only_right = int(((left == 1) & (right == 0)).sum()), int(((left == 0) & (right == 1)).sum())
    same = len(left) - only_left - only_right
    found = mcnemar([[same, only_left], [only_right, 0]], exact=True)
    return PairOfRuns(only_left, only_right, min(1.0, float(found.pvalue)))


def welch_p(seeds: Mapping[str, Scores], weights: Weights, against: float = 0.0) -> float | None:
    """Compute the two-sided p value of the null hypothesis that a weighted sum of groups' means equals `against`.

    Uses the Welch-Satterthwaite t test. It is meant for sums that have no exact permutation test.

    Args:
        seeds: by key, (seeds,) the scores of a group of at least two seeds.
        weights: by the same keys, the weight of each group's mean.
        against: the value under the null hypothesis.

    Returns:
        The p value, or None if no group varies between its seeds.
    """
    error = math.sqrt(sum(weights[key] ** 2 * one.var(ddof=1) / len(one) for key, one in seeds.items()))
    if error == 0:
        return None
    total = sum(weights[key] * float(one.mean()) for key, one in seeds.items())
    freedom = degrees_of_freedom({key: one[:, None] for key, one in seeds.items()}, weights)
    return float(2 * stats.t.sf(abs(total - against) / error, freedom))
