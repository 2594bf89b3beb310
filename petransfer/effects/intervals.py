"""Confidence intervals over seeds and test examples, for a difference, a weighted sum of means, and a ratio.

Terms: a sample is the matrix (seeds, examples) of the scores of one arm under one method, each score between 0 and 1. A
weighted sum of samples' means is passed as two mappings with the same keys: the samples and their weights. If both
effects of a comparison use the same sample, the sample has one key, and values of its mean are drawn only once.
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
Samples = Mapping[str, Scores]
Weights = Mapping[str, float]

CONFIDENCE = 0.95
DRAWS = 2000
# Nodes and weights of Gauss-Hermite quadrature, for the mean of a function over a standard normal distribution.
_NODES, _RAW_WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
_NODE_WEIGHTS = _RAW_WEIGHTS / _RAW_WEIGHTS.sum()


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval includes zero."""
        return self.low <= 0 <= self.high


def log_odds_of(shares: Scores, examples: int) -> Scores:
    """Compute the log-odds of shares of correct answers.

    Half an answer is added to the number of correct answers and to the number of wrong answers (Haldane 1956, Anscombe
    1956). Without these halves, the log-odds of a share of 0 or 1 would be infinite.

    Args:
        shares: between 0 and 1, any shape.
        examples: number of answers in each share.
    """
    return np.asarray(np.log((examples * shares + 0.5) / (examples * (1 - shares) + 0.5)), dtype=np.float64)


def drawn_means(
    samples: Samples, categories: NDArray[np.int64], examples: int, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Scores]:
    """Draw plausible values of each sample's true mean, given its scores on a few seeds and test examples.

    Seeds: the log-odds of a sample's seeds are assumed to be normal. Their mean and standard deviation are drawn from
    their joint fiducial distribution (Student's t for the mean, chi squared for the variance). Each draw is converted
    to the mean share of correct answers. The scores of seeds are often skewed: only one seed in six may generalise. For
    such scores, the 95 % interval of a bootstrap of six seeds contains the true value in 66 to 96 % of simulated
    studies. The interval of these draws contains it in 91 to 100 % of them (`python -m benchmarks.coverage`,
    results/bench/coverage-cpu.json).

    Examples: test examples are drawn with replacement within each category. Each such drawing changes the sample's
    mean; the change is added to one of the drawn means.

    Args:
        samples: by key, scores (seeds, examples) between 0 and 1. Each sample has at least two seeds, and all samples
            have the same examples.
        categories: (columns,) the category of each column of the samples.
        examples: number of test examples behind each seed's mean score.
        draws: number of values to draw.
        seed: the seed of the random number generator.

    Returns:
        By key, (draws,) means. Because the change from drawing examples is added, a mean can be below 0 or above 1.
    """
    counts_bn, state = _example_counts(np.asarray(categories, np.int64).tobytes(), draws, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    weights_bn = counts_bn / len(categories)
    return {key: _drawn(scores, weights_bn, examples, rng) for key, scores in samples.items()}


@functools.lru_cache(maxsize=4)  # all effects of a split share the draws; at COGS's 21,000 examples they take 84 MB
def _example_counts(categories: bytes, draws: int, seed: int) -> tuple[NDArray[np.uint16], Mapping[str, Any]]:
    """Return how often each example is drawn, as (draws, examples), and the random generator's state afterwards.

    The categories are passed as bytes, because the cache needs a hashable argument.
    """
    categories_n = np.frombuffer(categories, np.int64)
    rng = np.random.default_rng(seed)
    counts_bn = np.zeros((draws, len(categories_n)), np.uint16)
    for category in np.unique(categories_n):
        inside = np.flatnonzero(categories_n == category)
        counts_bn[:, inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=draws)
    return counts_bn, rng.bit_generator.state


def _drawn(scores_sn: Scores, weights_bn: Scores, examples: int, rng: np.random.Generator) -> Scores:
    by_example_n = scores_sn.mean(0)
    from_examples_b = weights_bn @ by_example_n - by_example_n.mean()
    means_b: Scores = drawn_seed_means(scores_sn.mean(1), examples, len(weights_bn), rng) + from_examples_b
    return means_b


def drawn_seed_means(shares_s: Scores, examples: int, draws: int, rng: np.random.Generator) -> Scores:
    """Draw plausible values of the mean share of correct answers over all possible seeds.

    The values are drawn from the shares of a few seeds; `drawn_means` explains the method.

    Args:
        shares_s: (seeds,) shares of correct answers, 0 to 1.
        examples: number of answers in each share.
        draws: number of values to draw.
        rng: the random number generator.

    Returns:
        (draws,) means between 0 and 1.
    """
    if np.ptp(shares_s) == 0:  # all seeds have the same share, so the standard deviation is zero
        return np.full(draws, shares_s.mean())
    odds_s = log_odds_of(shares_s, examples)
    free = len(odds_s) - 1
    deviations_b = odds_s.std(ddof=1) * np.sqrt(free / stats.chi2.ppf(_stratified(draws, rng), free))
    centres_b = odds_s.mean() + deviations_b * stats.norm.ppf(_stratified(draws, rng)) / math.sqrt(len(odds_s))
    means_b: Scores = expit(centres_b[:, None] + deviations_b[:, None] * _NODES) @ _NODE_WEIGHTS
    return means_b


def _stratified(draws: int, rng: np.random.Generator) -> Scores:
    """Draw numbers between 0 and 1: one from each of `draws` intervals of equal width, in random order.

    The quantiles of such numbers vary less than the quantiles of independent random numbers.
    """
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
    """Compute the 95 % interval of a weighted sum of samples' means, or None if a sample has a single seed.

    If the weighted sum of the given scores is outside the interval, the interval is extended to include the sum. A
    single outlier among the seeds can make this necessary. The arguments are explained in `drawn_means`.
    """
    if min(map(len, samples.values())) < 2:
        return None
    drawn = drawn_means(samples, categories, examples, draws=draws, seed=seed)
    return interval_of_draws(np.sum([weights[key] * drawn[key] for key in drawn], axis=0), total_of(samples, weights))


def interval_of_draws(drawn_b: Scores, estimate: float) -> Interval:
    """Return the middle 95 % of the draws, extended to include the estimate."""
    low, high = np.quantile(drawn_b, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(min(float(low), estimate), max(float(high), estimate))


def paired_interval(
    left: Scores, right: Scores, categories: NDArray[np.int64], *, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Compute the 95 % interval of the mean of `left - right` over pairs of seeds, or None if there is a single pair.

    The differences are assumed to be normal, so Student's t is used. Log-odds are not used, because a difference has
    none. Examples are drawn as in `drawn_means`.

    Args:
        left: (seeds, examples) scores between 0 and 1.
        right: scores of the same shape. Row i of `right` has the same seed as row i of `left`.
        categories: (examples,) the category of each example.
        draws: number of draws behind the interval.
        seed: the seed of the random number generator.
    """
    difference_sn = left - right
    if len(difference_sn) < 2:
        return None
    counts_bn, state = _example_counts(np.asarray(categories, np.int64).tobytes(), draws, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    pairs_s, by_example_n = difference_sn.mean(1), difference_sn.mean(0)
    error = pairs_s.std(ddof=1) / math.sqrt(len(pairs_s))
    drawn_b = pairs_s.mean() + error * stats.t.ppf(_stratified(draws, rng), len(pairs_s) - 1)
    drawn_b = drawn_b + (counts_bn / len(categories)) @ by_example_n - by_example_n.mean()
    return interval_of_draws(drawn_b, float(pairs_s.mean()))


def total_of(samples: Samples, weights: Weights) -> float:
    """Compute the weighted sum of the samples' means."""
    return float(sum(weights[key] * samples[key].mean() for key in samples))


def degrees_of_freedom(samples: Samples, weights: Weights) -> float:
    """Compute the Welch-Satterthwaite degrees of freedom of a weighted sum of means over seeds.

    If no sample varies between its seeds, the formula is undefined. Then the samples' degrees of freedom are added.
    """
    parts = [
        (weights[key] ** 2 * float(scores.mean(1).var(ddof=1)) / len(scores), len(scores) - 1)
        for key, scores in samples.items()
    ]
    total = sum(part for part, _ in parts)
    if total == 0:
        return float(sum(free for _, free in parts))
    return float(total**2 / sum(part**2 / free for part, free in parts))


def covariance(samples: Samples, first: Weights, second: Weights, categories: NDArray[np.int64]) -> float:
    """Compute the covariance of two weighted sums of the samples' means.

    The covariance from the variation between seeds and the covariance from the variation between examples are added.

    Args:
        samples: by key, (seeds, examples).
        first: the weights of the first sum.
        second: the weights of the second sum.
        categories: (examples,) the category of each example. Only the variation within categories counts.
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
    """Compute Fieller's 95 % interval of the ratio of two weighted sums, or None if the confidence set is unbounded.

    The confidence set contains every ratio r for which a t test does not reject `over - r * under = 0` (Fieller 1954).
    The set is bounded if and only if the same test rejects that the denominator is zero. The t test uses the smaller
    degrees of freedom of the two sums.

    Args:
        samples: by key, (seeds, examples). If a sample has a single seed, None is returned.
        over: weights of the numerator.
        under: weights of the denominator.
        categories: (examples,) the category of each example.
    """
    if min(map(len, samples.values())) < 2:
        return None
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
