"""The data from which effects are estimated: two groups of runs (`Contrast`), or two contrasts (`ContrastPair`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from petransfer.effects.intervals import Interval, Scores, paired_interval, sum_interval
from petransfer.effects.kind import Missing
from petransfer.effects.runs import ArmScores, Runs, runs_of
from petransfer.errors import UserError
from petransfer.recipe.effect_requests import RequestedEffect
from petransfer.recipe.metrics import EXACT_MATCH


@dataclass(frozen=True)
class Contrast:
    """Two groups of runs, left and right, to compare on one set of test examples.

    Attributes:
        left, right: (seeds, examples) exact match, 0 or 1. For other metrics and Orhan (2021): (seeds, 1), 0 to 1.
        log_prob_left, log_prob_right: (seeds,) mean log-probability per target token, in nats.
        categories: (columns,) category of each column of `left` and `right`.
        paired: whether row i of `left` and row i of `right` have equal seeds.
        left_name, right_name: the two arms or methods.
        examples: number of test examples. 0 means one example per column.
        left_out: number of runs that are not used, because the other group lacks their seed.
        dev: mean scores of left and right on dev, 0 to 1. NaN if unknown.
        left_key, right_key: identifiers of the runs. '' means no identifier.
        rows: identifier of the test examples; see `ArmScores`. '' means no identifier.
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
    rows: str = ""

    @property
    def test_examples(self) -> int:
        return self.examples or self.left.shape[1]

    @property
    def percent(self) -> tuple[Scores, Scores]:
        """The scores of the seeds in percent: arrays (seeds,) for left and right."""
        return 100 * self.left.mean(1), 100 * self.right.mean(1)

    def learnt(self, least: float) -> bool:
        """Return whether left and right reach `least` % exact match on dev. Unknown scores count as reached."""
        return self.metric != EXACT_MATCH or not any(100 * side < least for side in self.dev)

    @functools.cached_property
    def interval(self) -> Interval | None:
        """The 95 % interval of left minus right in percentage points. None if a group has a single seed."""
        if self.paired:
            found = paired_interval(self.left, self.right, self.categories)
        else:
            samples, weights = {"left": self.left, "right": self.right}, {"left": 1.0, "right": -1.0}
            found = sum_interval(samples, weights, self.categories, self.test_examples)
        return in_points(found)


def in_points(interval: Interval | None) -> Interval | None:
    """Convert an interval of shares (0 to 1) to percentage points. None stays None."""
    return Interval(100 * interval.low, 100 * interval.high) if interval else None


@dataclass(frozen=True)
class ContrastPair:
    """The difference between two arms, measured twice: in two families, methods or studies.

    `here_name` and `there_name` are the family, method or study of `here` and of `there`.
    """

    here: Contrast
    there: Contrast
    here_name: str
    there_name: str

    @property
    def keys(self) -> tuple[str, str, str, str]:
        """Keys of the groups: left here, right here, left there, right there. Equal keys mean equal runs."""
        named = (self.here.left_key, self.here.right_key, self.there.left_key, self.there.right_key)
        return tuple(key or f"group {at}" for at, key in enumerate(named))  # type: ignore[return-value]

    @property
    def same_examples(self) -> bool:
        """Whether the two contrasts were measured on the same test examples."""
        return (self.here.rows, self.here.test_examples) == (self.there.rows, self.there.test_examples)

    @property
    def samples(self) -> dict[str, Scores]:
        """The scores of the groups by key. A group that occurs twice has one entry."""
        groups = (self.here.left, self.here.right, self.there.left, self.there.right)
        return dict(zip(self.keys, groups, strict=True))

    def weights(self, *signs: float) -> dict[str, float]:
        """Return the weights of the groups by key. `signs` are in the order of `keys`."""
        found: dict[str, float] = {}
        for key, sign in zip(self.keys, signs, strict=True):
            found[key] = found.get(key, 0.0) + sign
        return found


@dataclass(frozen=True)
class Side:
    """One of two compared effects: the effect of an arm in one family, method or study.

    Attributes:
        name: family, method or study in which the effect was measured.
        left, right: mean scores of the two arms in percent.
        difference, interval: left minus right in percentage points.
        seeds: numbers of seeds of left and right.
        dev: dev scores of left and right in percent. None if unknown.
    """

    name: str
    left: float
    right: float
    difference: float
    interval: Interval | None
    seeds: tuple[int, int]
    dev: tuple[float, float] | None


def sides_of(pair: ContrastPair) -> tuple[Side, Side]:
    """Return the two compared effects, `here` and `there`."""
    return _side(pair.here_name, pair.here), _side(pair.there_name, pair.there)


def _side(name: str, contrast: Contrast) -> Side:
    left, right = (float(seeds.mean()) for seeds in contrast.percent)
    seeds = len(contrast.left), len(contrast.right)
    return Side(name, left, right, left - right, contrast.interval, seeds, dev_of(contrast))


def dev_of(contrast: Contrast) -> tuple[float, float] | None:
    """Return the dev scores of left and right in percent. None if a score is unknown."""
    left, right = contrast.dev
    return None if math.isnan(left) or math.isnan(right) else (100 * left, 100 * right)


def compared(name: str, split: str, left: ArmScores, right: ArmScores, **names: Any) -> Contrast:
    """Make a contrast of two groups of runs.

    Args:
        name: name of the effect, such as `english-scratch`.
        split: split on which the runs were tested.
        left, right: the groups. The right group is subtracted.
        names: further fields of `Contrast`. `paired=True` pairs runs with equal seeds and leaves out all other runs.

    Raises:
        UserError: the groups were tested on different examples.
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
        rows=left.rows,
        **names,
    )


def _rows(group: ArmScores, rows: Sequence[int]) -> ArmScores:
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
    """Return the contrast of an effect's two arms under a method. `Missing` if an arm has no finished run."""
    # The right arm may have one method only. For example, `scratch` always trains all weights.
    partner = runs.partner(effect.right, method, split)
    left, right = (
        runs.scored(arm, trained, split, effect.categories)
        for arm, trained in ((effect.left, method), (effect.right, partner))
    )
    if left and right:
        names = {"method": method, "left_name": effect.left, "right_name": effect.right}
        return compared(effect.name, split, left, right, **names)
    lacking = (effect.left, method) if not left else (effect.right, partner)
    why = runs.why_missing(*lacking, split, effect.categories)
    return Missing(f"{effect.name} on {split} ({method}): not estimated, because {why}")


def other_study(effect: RequestedEffect, split: str, runs: Runs) -> Runs | Missing:
    """Return the runs of the study `effect.study`. If the name is empty, return `runs`.

    Returns `Missing` if the study does not exist, has another task, or lacks the metric of `runs`.
    """
    if not effect.study:
        return runs
    other = runs_of(effect.study, runs.folder.path, runs.metric)
    if other is None:
        why = f"there is no study {effect.study}"
    elif other.recipe.task.name != runs.recipe.task.name:  # equal numbers of rows do not make them the same rows
        why = f"the study {effect.study} has another task, {other.recipe.task.name}"
    elif runs.metric not in {EXACT_MATCH, *other.cells[0].spec.task.metrics}:
        why = f"the study {effect.study} did not measure {runs.metric}"
    else:
        return other
    return Missing(f"{effect.kind} of {effect.name} on {split}: not estimated, because {why}")
