"""The two-level bootstrap: seeds, then examples within categories. Its draws serve differences and ratios alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


def drawn_means(groups: Sequence[Scores], categories: NDArray[np.int64], draws: int, seed: int) -> list[Scores]:
    """The mean of each group under every draw: arrays (draws,).

    groups: (seeds, examples) of scores, on the same examples, each with seeds of its own: two or more. A group that is
    given twice (the same object) is drawn once, so that a control that two effects share counts as one. What drawing
    seeds and what drawing examples changes is added up. What is neither a seed's nor an example's own is thereby
    counted twice (three times if seeds were drawn from reweighted examples: Owen 2007, arXiv:0712.1111), so that
    intervals err on the wide side where test sets are small. The deviations of the drawn seeds are stretched by
    sqrt(n / (n - 1)), after Hesterberg (2015, arXiv:1411.5279, section 3.1).
    """
    rng = np.random.default_rng(seed)
    weights_bn = _example_weights(categories, draws, rng)
    found: dict[int, Scores] = {}
    for group in groups:
        if id(group) not in found:
            found[id(group)] = _drawn(group, weights_bn, rng)
    return [found[id(group)] for group in groups]


def _example_weights(categories: NDArray[np.int64], draws: int, rng: np.random.Generator) -> Scores:
    """How often each example is drawn, over the number of examples: (draws, examples)."""
    weights_bn = np.zeros((draws, len(categories)))
    for category in np.unique(categories):
        inside = np.flatnonzero(categories == category)
        weights_bn[:, inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=draws)
    weights_bn /= len(categories)
    return weights_bn


def _drawn(scores_sn: Scores, weights_bn: Scores, rng: np.random.Generator) -> Scores:
    seeds = len(scores_sn)
    by_examples_b = weights_bn @ scores_sn.mean(0)
    means_s = scores_sn.mean(1)
    drawn_bs = rng.integers(seeds, size=(len(weights_bn), seeds))
    by_seeds_b = means_s[drawn_bs].mean(1) - means_s.mean()
    means_b: Scores = by_examples_b + math.sqrt(seeds / (seeds - 1)) * by_seeds_b
    return means_b


def degrees_of_freedom(groups: Sequence[Scores], weights: Sequence[float]) -> float:
    """Welch's and Satterthwaite's, of a weighted sum of the groups' means over seeds; all where no seed differs."""
    parts = [
        (weight**2 * float(group.mean(1).var(ddof=1)) / len(group), len(group) - 1)
        for group, weight in zip(groups, weights, strict=True)
    ]
    total = sum(part for part, _ in parts)
    if total == 0:
        return float(sum(free for _, free in parts))
    return total**2 / sum(part**2 / free for part, free in parts)


def percentile_interval(drawn_b: Scores, freedom: float, confidence: float = 0.95) -> Interval:
    """The interval of a drawn statistic at the percentiles of Student's t (Hesterberg 2015, section 4.1)."""
    tail = float(stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, freedom)))
    low, high = np.quantile(drawn_b, [tail, 1 - tail])
    return Interval(float(low), float(high))


def sum_interval(
    groups: Sequence[Scores],
    weights: Sequence[float],
    categories: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """The interval of a weighted sum of the groups' means, or None where a group has a single seed."""
    if min(map(len, groups)) < 2:
        return None
    drawn = drawn_means(groups, categories, draws, seed)
    drawn_b: Scores = np.sum([weight * means for weight, means in zip(weights, drawn, strict=True)], axis=0)
    return percentile_interval(drawn_b, degrees_of_freedom(groups, weights), confidence)
