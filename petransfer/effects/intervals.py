"""Confidence intervals over seeds and test examples: of a weighted sum of means, a difference, and a ratio.

A sample is an array (seeds, examples): the scores, 0 to 1, of one arm under one method. Samples and their weights are
two dictionaries with equal keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

Scores = NDArray[np.float64]
# If two compared effects use one sample, the sample has one key. Its mean is then drawn only once.
Samples = Mapping[str, Scores]
Weights = Mapping[str, float]

CONFIDENCE = 0.95
DRAWS = 2000
# Nodes and weights of Gauss-Hermite quadrature, for the mean of a function over a standard normal distribution.
_NODES, _RAW_WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
_NODE_WEIGHTS = _RAW_WEIGHTS / _RAW_WEIGHTS.sum()


@dataclass(frozen=True)
class Interval:
    """An interval from `low` to `high`."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


def log_odds_of(shares: Scores, examples: int) -> Scores:
    """Compute the log-odds of shares of correct answers, in nats.

    Half an answer is added to the correct and to the wrong answers (Haldane 1956, Anscombe 1956).

    Args:
        shares: values between 0 and 1, any shape.
        examples: number of answers in each share.
    """
    return np.asarray(np.log((examples * shares + 0.5) / (examples * (1 - shares) + 0.5)), dtype=np.float64)


def drawn_means(
    samples: Samples, categories: NDArray[np.int64], examples: int, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Scores]:
    """Draw plausible values of each sample's true mean.

    The log-odds of a sample's seeds are assumed to be normal. Their mean and variance are drawn from the fiducial
    distribution. Test examples are drawn with replacement within each category.

    Args:
        samples: arrays (seeds, examples) of scores, 0 to 1, by key. At least two seeds per sample.
        categories: (columns,) category of each column of the samples.
        examples: number of test examples per seed.
        draws: number of values to draw.

    Returns:
        For each key, (draws,) means. A mean can be slightly below 0 or above 1.
    """
    # A bootstrap over seeds is not used, because scores are often skewed: only one seed in six may generalise. With six
    # seeds, the 95 % interval of a bootstrap contains the true value in 66 to 96 % of simulated studies. The interval
    # of these draws contains the true value in 91 to 100 % (`python -m benchmarks.coverage`,
    # results/bench/coverage-cpu.json).
    counts_bn, state = _example_counts(np.asarray(categories, np.int64).tobytes(), draws, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    weights_bn = counts_bn / len(categories)
    return {key: _drawn(scores, weights_bn, examples, rng) for key, scores in samples.items()}


@functools.lru_cache(maxsize=4)  # all effects of a split share the draws; at COGS's 21,000 examples they take 84 MB
def _example_counts(categories: bytes, draws: int, seed: int) -> tuple[NDArray[np.uint16], Mapping[str, Any]]:
    """Return how often each example is drawn in each draw, and the random generator's state."""
    # The cache needs a hashable argument, so the categories come as bytes.
    categories_n = np.frombuffer(categories, np.int64)
    rng = np.random.default_rng(seed)
    counts_bn = np.zeros((draws, len(categories_n)), np.uint16)
    for category in np.unique(categories_n):
        inside = np.flatnonzero(categories_n == category)
        counts_bn[:, inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=draws)
    return counts_bn, rng.bit_generator.state


def _drawn(scores_sn: Scores, weights_bn: Scores, examples: int, rng: np.random.Generator) -> Scores:
    by_example_n = scores_sn.mean(0)
    # Drawing examples changes the mean of the sample. The change is added to the drawn mean.
    from_examples_b = weights_bn @ by_example_n - by_example_n.mean()
    means_b: Scores = drawn_seed_means(scores_sn.mean(1), examples, len(weights_bn), rng) + from_examples_b
    return means_b


def drawn_seed_means(shares_s: Scores, examples: int, draws: int, rng: np.random.Generator) -> Scores:
    """Draw plausible values of the mean share of correct answers over all possible seeds.

    Args:
        shares_s: (seeds,) shares of correct answers, 0 to 1.
        examples: number of answers in each share.
        draws: number of values to draw.
    """
    if np.ptp(shares_s) == 0:  # all seeds have the same share, so the standard deviation is zero
        return np.full(draws, shares_s.mean())
    # Student's t for the mean, chi squared for the variance. Each draw becomes a mean share of correct answers.
    odds_s = log_odds_of(shares_s, examples)
    free = len(odds_s) - 1
    deviations_b = odds_s.std(ddof=1) * np.sqrt(free / stats.chi2.ppf(_stratified(draws, rng), free))
    centres_b = odds_s.mean() + deviations_b * stats.norm.ppf(_stratified(draws, rng)) / math.sqrt(len(odds_s))
    means_b: Scores = expit(centres_b[:, None] + deviations_b[:, None] * _NODES) @ _NODE_WEIGHTS
    return means_b


def _stratified(draws: int, rng: np.random.Generator) -> Scores:
    # One number from each of `draws` equal parts of 0 to 1. Quantiles then vary less than with independent numbers.
    uniform_b: Scores = (rng.permutation(draws) + rng.random(draws)) / draws
    return uniform_b


def sum_interval(
    samples: Samples,
    weights: Weights,
    categories: NDArray[np.int64],
    examples: int,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval | None:
    """Compute the 95 % interval of a weighted sum of sample means. None if a sample has a single seed.

    `weights`: weight of each sample's mean, by key. `drawn_means` explains the other arguments.
    """
    if min(map(len, samples.values())) < 2:
        return None
    drawn = drawn_means(samples, categories, examples, draws=draws, seed=seed)
    total_b = np.sum([weights[key] * drawn[key] for key in drawn], axis=0)
    return interval_of_draws(total_b, total_of(samples, weights), possible(weights))


def possible(weights: Weights) -> Interval:
    """Return the smallest and the largest possible weighted sum of means between 0 and 1."""
    signed = [*weights.values()]
    return Interval(sum(min(weight, 0.0) for weight in signed), sum(max(weight, 0.0) for weight in signed))


def interval_of_draws(drawn_b: Scores, estimate: float, limits: Interval) -> Interval:
    """Return the middle 95 % of the draws, cut to the possible values and extended to include the estimate.

    Args:
        drawn_b: (draws,) plausible values.
        estimate: the estimated value.
        limits: the smallest and the largest possible value.
    """
    low, high = np.quantile(drawn_b, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).clip(limits.low, limits.high)
    # With an outlier among the seeds, the estimate can be outside the middle 95 % of the draws.
    return Interval(min(float(low), estimate), max(float(high), estimate))


def paired_interval(
    left: Scores, right: Scores, categories: NDArray[np.int64], *, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Compute the 95 % interval of the mean of `left - right`. None if there is a single pair of seeds.

    Args:
        left, right: (seeds, examples) scores, 0 to 1. Row i of `left` and row i of `right` have equal seeds.
        categories: (examples,) category of each example.
    """
    difference_sn = left - right
    if len(difference_sn) < 2:
        return None
    counts_bn, state = _example_counts(np.asarray(categories, np.int64).tobytes(), draws, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    pairs_s, by_example_n = difference_sn.mean(1), difference_sn.mean(0)
    # Log-odds are not used, because a difference has none. The differences are assumed to be normal.
    error = pairs_s.std(ddof=1) / math.sqrt(len(pairs_s))
    drawn_b = pairs_s.mean() + error * stats.t.ppf(_stratified(draws, rng), len(pairs_s) - 1)
    drawn_b = drawn_b + (counts_bn / len(categories)) @ by_example_n - by_example_n.mean()
    return interval_of_draws(drawn_b, float(pairs_s.mean()), Interval(-1.0, 1.0))


def total_of(samples: Samples, weights: Weights) -> float:
    """Compute a weighted sum of sample means."""
    return float(sum(weights[key] * samples[key].mean() for key in samples))


def degrees_of_freedom(samples: Samples, weights: Weights) -> float:
    """Compute the Welch-Satterthwaite degrees of freedom of a weighted sum of means over seeds."""
    parts = [
        (weights[key] ** 2 * float(scores.mean(1).var(ddof=1)) / len(scores), len(scores) - 1)
        for key, scores in samples.items()
    ]
    total = sum(part for part, _ in parts)
    # No sample varies between its seeds, so the formula is undefined. The degrees of freedom are added instead.
    if total == 0:
        return float(sum(free for _, free in parts))
    return float(total**2 / sum(part**2 / free for part, free in parts))


def covariance(samples: Samples, first: Weights, second: Weights, categories: NDArray[np.int64]) -> float:
    """Compute the covariance of two weighted sums of sample means, over seeds and examples.

    Args:
        samples: arrays (seeds, examples) by key.
        first, second: weights of the two sums, by key.
        categories: (examples,) category of each example.
    """
    over_seeds = sum(first[key] * second[key] * scores.mean(1).var(ddof=1) / len(scores)
                     for key, scores in samples.items())  # fmt: skip
    sums = [np.sum([weights[key] * samples[key].mean(0) for key in samples], axis=0) for weights in (first, second)]
    over_examples = 0.0
    for category in np.unique(categories):
        inside = categories == category
        a, b = (total[inside] - total[inside].mean() for total in sums)
        over_examples += float((a * b).sum())
    return float(over_seeds + over_examples / len(categories) ** 2)


def fieller_interval(samples: Samples, over: Weights, under: Weights, categories: NDArray[np.int64]) -> Interval | None:
    """Compute Fieller's 95 % interval of the ratio of two weighted sums (Fieller 1954).

    Args:
        samples: arrays (seeds, examples) by key.
        over, under: weights of numerator and denominator, by key.
        categories: (examples,) category of each example.

    Returns:
        The interval. None if it is unbounded or a sample has a single seed.
    """
    if min(map(len, samples.values())) < 2:
        return None
    # The interval has every ratio r for which a t test does not reject `over - r * under = 0`. It is bounded if and
    # only if the t test rejects that the denominator is zero.
    top, bottom = total_of(samples, over), total_of(samples, under)
    free = min(degrees_of_freedom(samples, over), degrees_of_freedom(samples, under))
    squared = float(stats.t.ppf((1 + CONFIDENCE) / 2, free)) ** 2
    var_top, var_bottom, both = (
        covariance(samples, *pair, categories) for pair in ((over, over), (under, under), (over, under))
    )
    a, b, c = bottom**2 - squared * var_bottom, top * bottom - squared * both, top**2 - squared * var_top
    if a <= 0:
        return None
    root = math.sqrt(max(0.0, b**2 - a * c))
    return Interval((b - root) / a, (b + root) / a)
