"""Confidence intervals over seeds and test examples, for one difference, a sum of differences, and a ratio.

Terms: a sample is the matrix (seeds, examples) of scores of one arm under one method, each score between 0 and 1. A
weighted sum of samples' means is written as two mappings with the same keys: the samples, and their weights. A sample
that two effects share has one key, so it is drawn once.
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
# Nodes and weights that integrate over a normal distribution.
_NODES, _RAW_WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
_NODE_WEIGHTS = _RAW_WEIGHTS / _RAW_WEIGHTS.sum()


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies inside."""
        return self.low <= 0 <= self.high


def log_odds_of(shares: Scores, examples: int) -> Scores:
    """Compute the log-odds of shares of right answers, with half an answer added to both sides.

    The half answers (Haldane 1956, Anscombe 1956) give a share of 0 or 1 finite log-odds.

    Args:
        shares: between 0 and 1, any shape.
        examples: how many answers each share is taken over.
    """
    return np.asarray(np.log((examples * shares + 0.5) / (examples * (1 - shares) + 0.5)), dtype=np.float64)


def drawn_means(
    samples: Samples, categories: NDArray[np.int64], examples: int, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Scores]:
    """Draw values of each sample's true mean that its seeds and examples are compatible with.

    Seeds: the log-odds of a sample's seeds are taken as normal. Their mean and deviation are drawn from their joint
    fiducial distribution (Student's t for the mean, chi squared for the variance), and each draw is turned into the
    mean share of right answers. Seeds of this project are skewed (one in six may generalise), and on such shapes a
    bootstrap of six seeds covers the truth in 66 to 96 % of studies instead of 95 %; this interval covers it in 91 to
    100 % (`python -m benchmarks.coverage`, results/bench/coverage-cpu.json).

    Examples: drawn with replacement within categories; what this changes in the mean over all seeds is added.

    Args:
        samples: by key, (seeds, examples) between 0 and 1; two seeds or more each, all on the same examples.
        categories: (columns,) the category of each column of the samples.
        examples: how many test examples a seed's share is taken over.
        draws: how many values to draw.
        seed: of the random generator.

    Returns:
        By key, (draws,) means between 0 and 1, apart from what the examples add.
    """
    counts_bn, state = _example_counts(np.asarray(categories, np.int64).tobytes(), draws, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    weights_bn = counts_bn / len(categories)
    return {key: _drawn(scores, weights_bn, examples, rng) for key, scores in samples.items()}


@functools.lru_cache(maxsize=4)  # all effects of a split share the draws; at COGS's 21,000 examples they take 84 MB
def _example_counts(categories: bytes, draws: int, seed: int) -> tuple[NDArray[np.uint16], Mapping[str, Any]]:
    """Return how often each example is drawn (draws, examples), and the state of the generator afterwards."""
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
    """Draw values of the mean share over all seeds that there could be, from the shares of a few (see `drawn_means`).

    Args:
        shares_s: (seeds,) shares of right answers, 0 to 1.
        examples: how many answers each share is taken over.
        draws: how many values to draw.
        rng: the random generator.

    Returns:
        (draws,) means between 0 and 1.
    """
    if np.ptp(shares_s) == 0:  # the same figure in all seeds leaves nothing to draw
        return np.full(draws, shares_s.mean())
    odds_s = log_odds_of(shares_s, examples)
    free = len(odds_s) - 1
    deviations_b = odds_s.std(ddof=1) * np.sqrt(free / stats.chi2.ppf(_stratified(draws, rng), free))
    centres_b = odds_s.mean() + deviations_b * stats.norm.ppf(_stratified(draws, rng)) / math.sqrt(len(odds_s))
    means_b: Scores = expit(centres_b[:, None] + deviations_b[:, None] * _NODES) @ _NODE_WEIGHTS
    return means_b


def _stratified(draws: int, rng: np.random.Generator) -> Scores:
    """Draw one number from each of `draws` equal parts of 0 to 1, in random order: steadier than plain draws."""
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
    """Compute the 95 % interval of a weighted sum of samples' means, or None where a sample has a single seed.

    The interval is extended to the estimate itself where that lies outside, as with a single outlier among the seeds.
    """
    if min(map(len, samples.values())) < 2:
        return None
    drawn = drawn_means(samples, categories, examples, draws=draws, seed=seed)
    return interval_of_draws(np.sum([weights[key] * drawn[key] for key in drawn], axis=0), total_of(samples, weights))


def interval_of_draws(drawn_b: Scores, estimate: float) -> Interval:
    """Return the middle 95 % of draws, extended to the estimate."""
    low, high = np.quantile(drawn_b, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(min(float(low), estimate), max(float(high), estimate))


def paired_interval(
    left: Scores, right: Scores, categories: NDArray[np.int64], *, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Compute the 95 % interval of the mean difference of pairs of seeds, or None where there is a single pair.

    Differences of pairs have no log-odds: they are taken as normal, so Student's t. Examples are drawn as in
    `drawn_means`.

    Args:
        left: (seeds, examples).
        right: the same shape; row i of both sides has the same seed.
        categories: (examples,).
        draws: how many values to draw.
        seed: of the random generator.
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
    """Compute Welch's and Satterthwaite's degrees of freedom of a weighted sum of means over seeds.

    Returns the sum of all samples' degrees of freedom where no seed differs from another.
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
    """Compute the covariance of two weighted sums of the samples' means, over seeds and over examples.

    Args:
        samples: by key, (seeds, examples).
        first: the weights of one sum.
        second: the weights of the other.
        categories: (examples,) the categories that examples are drawn within.
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
    """Compute Fieller's 95 % interval of the ratio of two weighted sums, or None where the set is unbounded.

    The set holds every ratio r for which `over - r * under` could be zero (Fieller 1954). It is bounded exactly where
    the denominator differs from zero by the same test. Student's t has the smaller degrees of freedom of the two sums.

    Args:
        samples: by key, (seeds, examples); two seeds or more each.
        over: weights of the numerator.
        under: weights of the denominator.
        categories: (examples,).
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
