"""Statistics of a contrast between two groups of runs that were tested on the same examples.

A group is a matrix (seeds, examples) of scores: 0 or 1 for exact match. Runs differ by their seed, and examples are a
sample too, drawn within categories: both count in the interval. SciPy and statsmodels do the tests.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import ttost_ind

Scores = NDArray[np.float64]

LEVEL = 0.05
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a difference."""

    low: float
    high: float


def difference_interval(
    left: Scores,
    right: Scores,
    categories: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """A two-level bootstrap interval of mean(left) - mean(right), or None where a group has a single seed.

    left, right: (seeds, examples). categories: (examples,), of which examples are drawn within, the same for both
    groups; seeds are drawn within each group. Few seeds make a bootstrap interval too narrow, for two reasons that are
    mended after Hesterberg (2015, arXiv:1411.5279, sections 3.1 and 4.1): the deviations of the drawn seeds are
    stretched by sqrt(n / (n - 1)), and the percentiles are those of Student's t with Welch's degrees of freedom.
    """
    if min(len(left), len(right)) < 2:
        return None
    rng = np.random.default_rng(seed)
    weights_bn = _example_weights(categories, draws, rng)
    drawn_b = _drawn_means(left, weights_bn, rng) - _drawn_means(right, weights_bn, rng)
    tail = float(stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, _degrees_of_freedom(left.mean(1), right.mean(1)))))
    low, high = np.quantile(drawn_b, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _example_weights(categories: NDArray[np.int64], draws: int, rng: np.random.Generator) -> Scores:
    """How often each example is drawn, over the number of examples: (draws, examples)."""
    weights_bn = np.zeros((draws, len(categories)))
    for category in np.unique(categories):
        inside = np.flatnonzero(categories == category)
        weights_bn[:, inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=draws)
    return weights_bn / len(categories)


def _drawn_means(scores_sn: Scores, weights_bn: Scores, rng: np.random.Generator) -> Scores:
    seeds = len(scores_sn)
    by_seed_bs = weights_bn @ scores_sn.T
    whole_b = by_seed_bs.mean(1)
    drawn_bs = rng.integers(seeds, size=by_seed_bs.shape)
    resampled_b = np.take_along_axis(by_seed_bs, drawn_bs, axis=1).mean(1)
    means_b: Scores = whole_b + math.sqrt(seeds / (seeds - 1)) * (resampled_b - whole_b)
    return means_b


def _degrees_of_freedom(left: Scores, right: Scores) -> float:
    """Welch's, over the seeds' means; all of them where no seed differs from another."""
    spread = [float(group.var(ddof=1)) / len(group) for group in (left, right)]
    if sum(spread) == 0:
        return len(left) + len(right) - 2
    return sum(spread) ** 2 / sum(part**2 / (len(group) - 1) for part, group in zip(spread, (left, right), strict=True))


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
            (left, right), _mean_difference, permutation_type=kind, vectorized=True, n_resamples=20_000, random_state=0
        )
    return float(found.pvalue)


def _mean_difference(left: Scores, right: Scores, axis: int) -> Scores:
    difference: Scores = np.round(left.mean(axis) - right.mean(axis), 12)  # equal deals must compare as equal
    return difference


def smallest_p(seeds_left: int, seeds_right: int) -> float:
    """The smallest two-sided p that the unpaired permutation test can give with so many seeds."""
    deals = math.comb(seeds_left + seeds_right, seeds_left)
    return min(1.0, (2 if seeds_left == seeds_right else 1) / deals) if deals > 1 else 1.0


def holm(p_values: list[float]) -> list[float]:
    """The p values adjusted for all being looked at (Holm 1979)."""
    return [float(value) for value in multipletests(p_values, method="holm")[1]] if p_values else []


def equivalence_p(left: Scores, right: Scores, margin: float) -> float | None:
    """The p of two one-sided Welch tests that the seeds' means differ by less than `margin`; None for single seeds."""
    if min(len(left), len(right)) < 2:
        return None
    if left.var() == 0 and right.var() == 0:
        return 0.0 if abs(float(left.mean() - right.mean())) < margin else 1.0
    return float(ttost_ind(left, right, -margin, margin, usevar="unequal")[0])


def seeds_needed(left: Scores, right: Scores, tests: int, margin: float, power: float = 0.8) -> int | None:
    """Seeds a group for the difference to show with this power after Holm over `tests`, at most 1,000.

    The difference counted on is the one seen, but at least `margin`; the deviation is the pooled one of the seeds, and
    None is said where a single seed has none. The permutation test's smallest p sets a floor.
    """
    if min(len(left), len(right)) < 2:
        return None
    alpha = LEVEL / tests
    floor = next(seeds for seeds in itertools.count(2) if smallest_p(seeds, seeds) <= alpha)
    deviation = math.sqrt((left.var(ddof=1) + right.var(ddof=1)) / 2)
    size = max(abs(float(left.mean() - right.mean())), margin) / max(deviation, 1e-9)
    for seeds in range(floor, MOST_SEEDS):
        # statsmodels' power is NaN at some large effects, where it is all but 1
        if not TTestIndPower().power(min(size, 4.0), seeds, alpha) < power:
            return seeds
    return MOST_SEEDS
