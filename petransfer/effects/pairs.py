"""The data that effects are estimated from: two groups of runs to compare, or two pairs of such groups."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from petransfer.effects.intervals import Interval, Scores, paired_interval, sum_interval
from petransfer.effects.kind import Missing
from petransfer.effects.runs import Runs, Scored, runs_of
from petransfer.errors import UserError
from petransfer.recipe.effect_requests import RequestedEffect
from petransfer.recipe.metrics import EXACT_MATCH


@dataclass(frozen=True)
class Contrast:
    """Two groups of runs on the same test examples.

    left, right: (seeds, examples), exact match of each example, 0 or 1. If the outcome of each example is not
    known, the shape is (seeds, 1) and holds each seed's share of right answers, or its value of another `metric`
    divided by 100. The interval then covers only the variation between seeds.
    log_prob_left, log_prob_right: (seeds,) the mean log-probability per target token of each run, or None.
    categories: (examples,) the category of each column. arm: the arm in which two methods are compared.
    paired: row i of both sides has the same seed. left_name, right_name: the two arms or methods.
    examples: number of test examples where the shape is (seeds, 1), else 0. left_out: number of runs without a partner.
    dev: mean exact match (or the metric) of each side on dev, divided by 100; NaN if it is not known.
    left_key, right_key: identify the runs of each side; equal keys mean the same runs.
    Runs with an empty key are never the same as others.
    """

    name: str
    split: str
    method: str
    left: Scores
    right: Scores
    log_prob_left: Scores | None
    log_prob_right: Scores | None
    categories: np.ndarray
    arm: str = ""
    paired: bool = False
    left_name: str = ""
    right_name: str = ""
    examples: int = 0
    left_out: int = 0
    metric: str = EXACT_MATCH
    dev: tuple[float, float] = (math.nan, math.nan)
    left_key: str = ""
    right_key: str = ""

    @property
    def test_examples(self) -> int:
        """The number of test examples in each seed's score."""
        return self.examples or self.left.shape[1]

    @property
    def percent(self) -> tuple[Scores, Scores]:
        """Each seed's score in percent, left and right: (seeds,) each."""
        return 100 * self.left.mean(1), 100 * self.right.mean(1)

    def learnt(self, least: float) -> bool:
        """Return whether both sides reach `least` % exact match on dev. True if dev or exact match is not known."""
        return self.metric != EXACT_MATCH or not any(100 * side < least for side in self.dev)

    @functools.cached_property
    def interval(self) -> Interval | None:
        """The 95 % interval of left minus right in points; None if a side has a single seed."""
        if self.paired:
            found = paired_interval(self.left, self.right, self.categories)
        else:
            samples, weights = {"left": self.left, "right": self.right}, {"left": 1.0, "right": -1.0}
            found = sum_interval(samples, weights, self.categories, self.test_examples)
        return in_points(found)


def in_points(interval: Interval | None) -> Interval | None:
    """Convert an interval of shares to points."""
    return Interval(100 * interval.low, 100 * interval.high) if interval else None


@dataclass(frozen=True)
class Two:
    """Two contrasts of the same arms on the same split, `here` and `there`, with the family or method of each."""

    here: Contrast
    there: Contrast
    here_name: str
    there_name: str

    @property
    def keys(self) -> tuple[str, str, str, str]:
        """Keys of the groups (left here, right here, left there, right there); equal keys mean the same runs."""
        named = (self.here.left_key, self.here.right_key, self.there.left_key, self.there.right_key)
        return tuple(key or f"group {at}" for at, key in enumerate(named))  # type: ignore[return-value]

    @property
    def samples(self) -> dict[str, Scores]:
        """The scores of each distinct group by key."""
        groups = (self.here.left, self.here.right, self.there.left, self.there.right)
        return dict(zip(self.keys, groups, strict=True))

    def weights(self, *signs: float) -> dict[str, float]:
        """Return weights by key. signs: the weights of left here, right here, left there and right there."""
        found: dict[str, float] = {}
        for key, sign in zip(self.keys, signs, strict=True):
            found[key] = found.get(key, 0.0) + sign
        return found


@dataclass(frozen=True)
class Side:
    """One of the two effects that a scale effect or a retention compares, in percent and points.

    name: the family or the method. dev: dev scores of left and right in percent, None if they are not known.
    """

    name: str
    left: float
    right: float
    difference: float
    interval: Interval | None
    seeds: tuple[int, int]
    dev: tuple[float, float] | None


def sides_of(two: Two) -> tuple[Side, Side]:
    """Return both effects with their intervals."""
    return _side(two.here_name, two.here), _side(two.there_name, two.there)


def _side(name: str, contrast: Contrast) -> Side:
    left, right = (float(seeds.mean()) for seeds in contrast.percent)
    seeds = len(contrast.left), len(contrast.right)
    return Side(name, left, right, left - right, contrast.interval, seeds, dev_of(contrast))


def dev_of(contrast: Contrast) -> tuple[float, float] | None:
    """Return the dev scores of both sides in percent, or None if one is not known."""
    left, right = contrast.dev
    return None if math.isnan(left) or math.isnan(right) else (100 * left, 100 * right)


def compared(name: str, split: str, left: Scored, right: Scored, **names: Any) -> Contrast:
    """Make a contrast of two groups of runs. With `paired` in `names`, runs are paired by seed, over the common seeds.

    Raises:
        UserError: the groups were not tested on the same examples.
    """
    if not np.array_equal(left.index, right.index):
        raise UserError(f"the runs of {name} on {split} were not tested on the same examples")
    parts = [left, right]
    if names.get("paired"):
        common = [seed for seed in left.seeds if seed in right.seeds]
        parts = [_rows(side, [side.seeds.index(seed) for seed in common]) for side in parts]
    _, categories = np.unique(left.category, return_inverse=True)
    return Contrast(
        name=name,
        split=split,
        left=parts[0].scores,
        right=parts[1].scores,
        log_prob_left=parts[0].log_probs,
        log_prob_right=parts[1].log_probs,
        categories=categories,
        examples=len(left.index),
        left_out=len(left.seeds) + len(right.seeds) - len(parts[0].seeds) - len(parts[1].seeds),
        metric=left.metric,
        dev=(_mean(parts[0].dev), _mean(parts[1].dev)),
        left_key=parts[0].key,
        right_key=parts[1].key,
        **names,
    )


def _rows(group: Scored, rows: Sequence[int]) -> Scored:
    at = list(rows)
    return replace(
        group,
        seeds=tuple(group.seeds[row] for row in at),
        run_ids=tuple(group.run_ids[row] for row in at),
        scores=group.scores[at],
        log_probs=group.log_probs[at],
        dev=group.dev[at],
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def arms_under(effect: RequestedEffect, split: str, method: str, runs: Runs) -> Contrast | Missing:
    """Return the contrast of an effect's two arms under a method.

    The right arm is taken under the same method, or under its only method if it lacks that one: `scratch` always trains
    all weights.
    """
    partner = runs.partner(effect.right, method, split)
    left, right = runs.scored(effect.left, method, split), runs.scored(effect.right, partner, split)
    if left and right:
        names = {"method": method, "left_name": effect.left, "right_name": effect.right}
        return compared(effect.name, split, left, right, **names)
    lacking = (effect.left, method) if not left else (effect.right, partner)
    return Missing(f"{effect.name} on {split} ({method}): not estimated, {runs.why_none(*lacking, split)}")


def other_study(effect: RequestedEffect, split: str, runs: Runs) -> Runs | Missing:
    """Return the study that an effect refers to, by default this one, scored by the metric of this study."""
    if not effect.study:
        return runs
    other = runs_of(effect.study, runs.folder.path, runs.metric)
    if other and runs.metric in {EXACT_MATCH, *other.cells[0].spec.task.metrics}:
        return other
    why = f"the study {effect.study} did not measure {runs.metric}" if other else f"no study {effect.study}"
    return Missing(f"{effect.kind} of {effect.name} on {split}: not estimated, {why}")
