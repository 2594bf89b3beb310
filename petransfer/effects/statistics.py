"""Statistics of a contrast between two groups of runs that were tested on the same examples.

A group is a matrix (seeds, examples) of scores: 0 or 1 for exact match. Runs differ by their seed, and examples are a
sample too, drawn within categories: both count in the interval. SciPy and statsmodels do the tests.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from petransfer.effects.bootstrap import Interval, Scores, degrees_of_freedom, sum_interval
from petransfer.effects.seed_counts import LEVEL, MOST_DEALS, MOST_SEEDS, fewest_for_equivalence, fewest_seeds


def difference_interval(
    left: Scores,
    right: Scores,
    categories: NDArray[np.int64],
    *,
    paired: bool = False,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """A two-level bootstrap interval of mean(left) - mean(right), or None where a group has a single seed.

    left, right: (seeds, examples). categories: (examples,), of which examples are drawn within, the same for both
    groups. Seeds are drawn within each group, or as pairs where row i of both has the same seed. Few seeds make a
    plain bootstrap interval too narrow; what mends that stands with `drawn_means` and `percentile_interval`.
    """
    if paired:
        return sum_interval([left - right], [1.0], categories, confidence=confidence, draws=draws, seed=seed)
    return sum_interval([left, right], [1.0, -1.0], categories, confidence=confidence, draws=draws, seed=seed)


def permutation_p(left: Scores, right: Scores, *, paired: bool = False) -> float:
    """The exact two-sided permutation p of the difference of means of the seeds' scores.

    Unpaired: over all ways to deal the seeds out to two groups of these sizes. Paired: over all signs of the
    differences. At most 20,000 deals are tried, at random, where there are more. A single seed decides nothing: 1.
    """
    if paired and len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} seeds cannot be paired")
    if min(len(left), len(right)) < 2:
        return 1.0
    kind = "samples" if paired else "independent"
    with warnings.catch_warnings():  # identical scores have no variance, which is no trouble here
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
    difference: Scores = np.round(left.mean(axis) - right.mean(axis), 12)  # equal deals must compare as equal
    return difference


def holm(p_values: list[float]) -> list[float]:
    """The p values adjusted for all being looked at (Holm 1979)."""
    return [float(value) for value in multipletests(p_values, method="holm")[1]] if p_values else []


def equivalence_p(left: Scores, right: Scores, margin: float, *, paired: bool = False) -> float | None:
    """The p of two one-sided tests that the seeds' means differ by less than `margin`; None where seeds are too few.

    Welch's tests, or Student's of the differences where seeds are paired.
    """
    if min(len(left), len(right)) < fewest_for_equivalence(paired=paired):
        return None
    flat = (left - right).var() == 0 if paired else left.var() == 0 and right.var() == 0
    if flat:
        return 0.0 if abs(float(left.mean() - right.mean())) < margin else 1.0
    with warnings.catch_warnings():  # nearly identical figures lose precision; the p is then 0 or 1 all the same
        warnings.simplefilter("ignore")
        if paired:
            return float(ttost_paired(left, right, -margin, margin)[0])
        return float(ttost_ind(left, right, -margin, margin, usevar="unequal")[0])


def seeds_needed(
    left: Scores, right: Scores, tests: int, margin: float, power: float = 0.8, *, paired: bool = False
) -> int | None:
    """Seeds a group for the difference to show with this power after Holm over `tests`, at most 1,000.

    The difference counted on is the one seen, but at least `margin`; the deviation is the pooled one of the seeds, or
    that of the differences where they are paired, and None is said where a single seed has none. The permutation
    test's smallest p sets a floor.
    """
    if min(len(left), len(right)) < 2:
        return None
    alpha = LEVEL / tests
    variance = (left - right).var(ddof=1) if paired else (left.var(ddof=1) + right.var(ddof=1)) / 2
    size = max(abs(float(left.mean() - right.mean())), margin) / max(math.sqrt(variance), 1e-9)
    test = TTestPower() if paired else TTestIndPower()
    for seeds in range(fewest_seeds(tests, paired=paired), MOST_SEEDS):
        # statsmodels' power is NaN at some large effects, where it is all but 1
        if not test.power(min(size, 4.0), seeds, alpha) < power:
            return seeds
    return MOST_SEEDS


@dataclass(frozen=True)
class Odds:
    """A difference of log-odds in nats: of means over seeds, with Welch's interval, and an exact p over seeds."""

    difference: float
    interval: Interval | None
    p: float


def log_odds(left: Scores, right: Scores, examples: int, *, paired: bool = False) -> Odds:
    """How the odds of a right answer differ, which near 0 and 100 % shows what points cannot.

    left, right: each seed's share of right answers, of so many examples; half an answer is added on both sides
    (Haldane 1956, Anscombe 1956), so that 0 and 1 have odds too.
    """
    both = [np.log((examples * share + 0.5) / (examples * (1 - share) + 0.5)) for share in (left, right)]
    difference = float(both[0].mean() - both[1].mean())
    p = permutation_p(both[0], both[1], paired=paired)
    if (
        min(len(left), len(right)) < 2
        or all(side.var() == 0 for side in both)
        or (paired and np.ptp(both[0] - both[1]) == 0)
    ):
        return Odds(difference, None, p)
    with warnings.catch_warnings():  # nearly identical figures lose precision, which half an answer never needs
        warnings.simplefilter("ignore")
        found = stats.ttest_rel(*both) if paired else stats.ttest_ind(*both, equal_var=False)
    interval = found.confidence_interval(0.95)
    return Odds(difference, Interval(float(interval.low), float(interval.high)), p)


@dataclass(frozen=True)
class PairOfRuns:
    """McNemar's exact test of two runs on the same examples: how many only one of them has right, and p."""

    only_left: int
    only_right: int
    p: float


def pair_of_runs(left: Scores, right: Scores) -> PairOfRuns:
    """Compares one run with one other, example by example. It speaks of these two runs, not of other seeds."""
    only_left, only_right = int(((left == 1) & (right == 0)).sum()), int(((left == 0) & (right == 1)).sum())
    same = len(left) - only_left - only_right
    found = mcnemar([[same, only_left], [only_right, 0]], exact=True)
    return PairOfRuns(only_left, only_right, min(1.0, float(found.pvalue)))


def welch_p(groups: Sequence[Scores], weights: Sequence[float], against: float = 0.0) -> float | None:
    """The two-sided p that a weighted sum of the groups' means is `against`; None where no seed differs from another.

    groups: the seeds' figures (seeds,). Welch's and Satterthwaite's t, for sums that no permutation tests exactly.
    """
    error = math.sqrt(sum(weight**2 * group.var(ddof=1) / len(group)
                          for group, weight in zip(groups, weights, strict=True)))  # fmt: skip
    if error == 0:
        return None
    total = sum(weight * float(group.mean()) for group, weight in zip(groups, weights, strict=True))
    freedom = degrees_of_freedom([group[:, None] for group in groups], weights)
    return float(2 * stats.t.sf(abs(total - against) / error, freedom))
