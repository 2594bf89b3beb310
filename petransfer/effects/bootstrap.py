"""The two-level bootstrap: seeds, then examples within categories. Its draws serve differences and ratios alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    counts_bn, state = _example_counts(categories.astype(np.int64).tobytes(), draws, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    weights_bn = counts_bn / len(categories)
    found: dict[int, Scores] = {}
    for group in groups:
        if id(group) not in found:
            found[id(group)] = _drawn(group, weights_bn, rng)
    return [found[id(group)] for group in groups]


@functools.lru_cache(maxsize=4)  # every effect of a split draws the same; at COGS's 21,000 examples each takes 84 MB
def _example_counts(categories: bytes, draws: int, seed: int) -> tuple[NDArray[np.uint16], Mapping[str, Any]]:
    """How often each example is drawn: (draws, examples), and where that leaves the generator. categories: int64."""
    categories_n = np.frombuffer(categories, np.int64)
    rng = np.random.default_rng(seed)
    counts_bn = np.zeros((draws, len(categories_n)), np.uint16)
    for category in np.unique(categories_n):
        inside = np.flatnonzero(categories_n == category)
        counts_bn[:, inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=draws)
    return counts_bn, rng.bit_generator.state


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
