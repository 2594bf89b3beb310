"""Effects of effects: how much more of one a larger family shows, and how much of one a method keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petransfer.effects.bootstrap import Interval, degrees_of_freedom, drawn_means, percentile_interval, sum_interval
from petransfer.effects.seed_counts import LEVEL, fewest_for_equivalence, smallest_p
from petransfer.effects.statistics import holm, welch_p
from petransfer.effects.verdict import Contrast, Verdict, holds_zero, no_room
from petransfer.recipe.schema import MARGIN

_SIGNS = (1.0, -1.0, -1.0, 1.0)


@dataclass(frozen=True)
class Side:
    """One of the two effects that are compared. In percent EM, or the metric judged by, and points.

    name: the family or the method.
    """

    name: str
    left: float
    right: float
    difference: float
    interval: Interval | None
    seeds: tuple[int, int]


@dataclass(frozen=True)
class Scale:
    """A difference of differences: the effect in this study's family less that in the smaller one.

    p: Welch's t over the four groups of seeds, but no less than an exact test of either side could give with its seeds.
    of_left, of_right: what the left and the right arm's own changes give to the difference; they sum up to it.
    """

    name: str
    split: str
    method: str
    here: Side
    there: Side
    difference: float
    interval: Interval | None
    of_left: float
    of_right: float
    p: float
    p_holm: float
    verdict: Verdict


@dataclass(frozen=True)
class Retention:
    """The effect under one method over the effect under another: 1 where all of it is kept.

    ratio and interval are None, and `undefined` says why, where the denominator's interval includes zero.
    """

    name: str
    split: str
    under: Side
    over: Side
    ratio: float | None
    interval: Interval | None
    undefined: str | None


@dataclass(frozen=True)
class Two:
    """Two contrasts of the same arms on the same split, with the names that tell them apart."""

    here: Contrast
    there: Contrast
    here_name: str
    there_name: str

    @property
    def groups(self) -> list[np.ndarray]:
        """0 to 100: left and right here, left and right there; the same runs are the same object."""
        percent: dict[int, np.ndarray] = {}
        sides = (self.here.left, self.here.right, self.there.left, self.there.right)
        return [percent.setdefault(id(side), 100 * side) for side in sides]


def scale_p(two: Two) -> float:
    """The p of a difference of differences before it is adjusted for other effects; single seeds decide nothing."""
    seeds = [group.mean(1) for group in two.groups]
    floor = max(smallest_p(len(seeds[0]), len(seeds[1])), smallest_p(len(seeds[2]), len(seeds[3])))
    if min(map(len, seeds)) < 2:
        return 1.0
    found = welch_p(seeds, _SIGNS)
    if found is None:  # no seed differs from another
        found = 0.0 if _sum(two) else 1.0
    return max(found, floor)


def judge_scales(
    pairs: Sequence[Two], beside: Sequence[float] = (), margin: float = MARGIN, draws: int = 2000
) -> list[Scale]:
    """The differences of differences, whose p values are adjusted for each other and for those of `beside`."""
    p_values = [scale_p(two) for two in pairs]
    adjusted = holm([*p_values, *beside])[: len(pairs)]
    return [_scale(two, p, after, margin, draws) for two, p, after in zip(pairs, p_values, adjusted, strict=True)]


def _scale(two: Two, p: float, adjusted: float, margin: float, draws: int) -> Scale:
    here, there = sides_of(two, draws)
    difference = here.difference - there.difference
    interval = difference_of_differences(two, draws)
    return Scale(
        name=two.here.name,
        split=two.here.split,
        method=two.here.method,
        here=here,
        there=there,
        difference=difference,
        interval=interval,
        of_left=here.left - there.left,
        of_right=there.right - here.right,
        p=p,
        p_holm=adjusted,
        verdict=_verdict(two, here, there, interval, adjusted, margin),
    )


def difference_of_differences(two: Two, draws: int = 2000) -> Interval | None:
    """Its interval; drawn apart where the two sides were not tested on as many examples."""
    groups = two.groups
    if len(two.here.categories) == len(two.there.categories):
        return sum_interval(groups, _SIGNS, two.here.categories, draws=draws)
    if min(map(len, groups)) < 2:
        return None
    first = drawn_means(groups[:2], two.here.categories, draws, 0)
    second = drawn_means(groups[2:], two.there.categories, draws, 1)
    return percentile_interval(first[0] - first[1] - second[0] + second[1], degrees_of_freedom(groups, _SIGNS))


def _verdict(two: Two, here: Side, there: Side, interval: Interval | None, p: float, margin: float) -> Verdict:
    if no_room(here.left, here.right) and no_room(there.left, there.right):
        return "saturated"
    if p < LEVEL and not holds_zero(interval):
        return "holds" if here.difference > there.difference else "reversed"
    if not _within(two, margin):
        return "inconclusive"
    both = no_room(here.left, here.right, margin) and no_room(there.left, there.right, margin)
    return "saturated" if both else "equivalent"


def _within(two: Two, margin: float) -> bool:
    """Two one-sided tests by Welch's t."""
    seeds = [group.mean(1) for group in two.groups]
    if min(map(len, seeds)) < fewest_for_equivalence() or abs(_sum(two)) >= margin:
        return False
    both = [welch_p(seeds, _SIGNS, against=at) for at in (-margin, margin)]
    return all(p is None or p / 2 < LEVEL for p in both)


def _sum(two: Two) -> float:
    return float(np.round(sum(sign * group.mean() for sign, group in zip(_SIGNS, two.groups, strict=True)), 9))


def sides_of(two: Two, draws: int = 2000) -> tuple[Side, Side]:
    """Both effects with their intervals."""
    groups = two.groups
    sides = []
    for name, contrast, (left, right) in (
        (two.here_name, two.here, groups[:2]),
        (two.there_name, two.there, groups[2:]),
    ):
        interval = sum_interval([left, right], [1.0, -1.0], contrast.categories, draws=draws)
        means = float(left.mean()), float(right.mean())
        sides.append(Side(name, *means, means[0] - means[1], interval, (len(left), len(right))))
    return sides[0], sides[1]


def retention(two: Two, draws: int = 2000) -> Retention:
    """How much of the effect `there` is left `here`, with its interval over joint draws of all groups."""
    under, over = sides_of(two, draws)
    undefined = _undefined(under, over, two)
    if undefined:
        return Retention(two.here.name, two.here.split, under, over, None, None, undefined)
    ratio = under.difference / over.difference
    groups = two.groups
    drawn = drawn_means(groups, two.here.categories, draws, 0)
    drawn_b = (drawn[0] - drawn[1]) / (drawn[2] - drawn[3])
    freedom = degrees_of_freedom(*_linear(groups, ratio))
    return Retention(two.here.name, two.here.split, under, over, ratio, percentile_interval(drawn_b, freedom), None)


def _undefined(under: Side, over: Side, two: Two) -> str | None:
    if over.interval is None:
        return f"not defined: the effect under {over.name} rests on a single seed"
    if holds_zero(over.interval):
        return (
            f"not defined: the effect under {over.name} could be zero "
            f"({over.difference:+.1f} points [{over.interval.low:+.1f}, {over.interval.high:+.1f}])"
        )
    if under.interval is None:
        return f"not defined: the effect under {under.name} rests on a single seed"
    if two.here.test_examples != two.there.test_examples:
        return "not defined: the two effects were not measured on the same examples"
    return None


def _linear(groups: list[np.ndarray], ratio: float) -> tuple[list[np.ndarray], list[float]]:
    """The groups with their weights in the ratio's first-order change; a group that is shared stands once."""
    weights: dict[int, float] = {}
    for group, weight in zip(groups, (1.0, -1.0, -ratio, ratio), strict=True):
        weights[id(group)] = weights.get(id(group), 0.0) + weight
    once = list({id(group): group for group in groups}.values())
    return once, [weights[id(group)] for group in once]
