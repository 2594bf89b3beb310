"""The verdict on an effect: what may be said of it, and what it would take to say more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from petransfer.effects.bootstrap import Interval, Scores
from petransfer.effects.criteria import CRITERIA
from petransfer.effects.seed_counts import LEVEL, smallest_p
from petransfer.effects.statistics import (
    Odds,
    PairOfRuns,
    difference_interval,
    equivalence_p,
    holm,
    log_odds,
    pair_of_runs,
    permutation_p,
    seeds_needed,
)
from petransfer.recipe.schema import EXACT_MATCH, MARGIN

Verdict = Literal["holds", "reversed", "equivalent", "inconclusive", "saturated"]

# Both arms nearer than this to 0 or to 100 leave a metric no room to differ.
ROOM = 1.0


@dataclass(frozen=True)
class Contrast:
    """Two groups of runs on the same test examples, ready to be compared.

    left, right: exact match, (seeds, examples), 0 or 1; or (seeds, 1), each seed's share, where the examples are not
    known, or its figure of another `metric` over 100: the interval is then over seeds alone. examples: how many there
    are, where they are not columns. dev: the mean of either side on dev, over 100, NaN where it is not known.
    log_prob_left, log_prob_right: the mean log-probability per target token of each run, or None where one is not known
    or not finite. categories: (examples,) numbers of categories. arm: of a contrast of methods. paired: row i of both
    sides has the same seed. left_name, right_name: the two arms or methods.
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

    @property
    def test_examples(self) -> int:
        """How many examples a seed's score is the mean of."""
        return self.examples or self.left.shape[1]


@dataclass(frozen=True)
class Effect:
    """An effect as effects.json has it. Differences and intervals in points of EM, or of the metric that effects are
    judged by; log_prob in nats per target token.

    p: exact, over seeds. p_holm: adjusted for the study's effects. smallest_p: what so few seeds could give at best,
    least_p_holm: the same after Holm. seeds_needed: a group, where the verdict is inconclusive and the seeds' spread is
    known. equivalence_p: None where the seeds are too few. log_odds: where a side is near 0 or 100 % of right answers.
    mcnemar: where each side is one run. left_out: runs without a partner of the same seed. dev: what either side
    reaches on dev, where one of them has learnt so little of it that the verdict speaks of training (`unlike_on_dev`).
    """

    name: str
    split: str
    method: str
    arm: str
    left_name: str
    right_name: str
    difference: float
    interval: Interval | None
    left: float
    right: float
    left_seeds: tuple[float, ...]
    right_seeds: tuple[float, ...]
    seeds: tuple[int, int]
    paired: bool
    left_out: int
    p: float
    p_holm: float
    smallest_p: float
    least_p_holm: float
    equivalence_p: float | None
    margin: float
    verdict: Verdict
    seeds_needed: int | None
    log_prob_difference: float | None
    log_prob_p: float | None
    log_odds: Odds | None
    mcnemar: PairOfRuns | None
    dev: tuple[float, float] | None

    @property
    def place(self) -> str:
        """Where it was measured: the method, or the arm of a contrast of methods."""
        return self.arm or self.method


# Nearer than this to 0 or to 100 %, a side's points hide how much its odds change.
NEAR_THE_ENDS = 5.0


def raw_p(contrast: Contrast) -> float:
    """The exact permutation p, before it is adjusted for other effects."""
    return permutation_p(contrast.left.mean(1), contrast.right.mean(1), paired=contrast.paired)


def judge(
    contrasts: Sequence[Contrast], margin: float = MARGIN, draws: int = 2000, beside: Sequence[float] = ()
) -> list[Effect]:
    """The effects of one study, whose p values are adjusted for each other, and for those of `beside`."""
    p_values = [raw_p(contrast) for contrast in contrasts]
    adjusted = holm([*p_values, *beside])[: len(contrasts)]
    tests = len(contrasts) + len(beside)
    return [
        _effect(contrast, p, after, tests, margin, draws)
        for contrast, p, after in zip(contrasts, p_values, adjusted, strict=True)
    ]


def _effect(contrast: Contrast, p: float, adjusted: float, tests: int, margin: float, draws: int) -> Effect:
    paired = contrast.paired
    left, right = 100 * contrast.left.mean(1), 100 * contrast.right.mean(1)
    means = float(left.mean()), float(right.mean())
    same = equivalence_p(left, right, margin, paired=paired)
    interval = difference_interval(
        100 * contrast.left, 100 * contrast.right, contrast.categories, paired=paired, draws=draws
    )
    verdict = verdict_of(*means, adjusted, same, interval, margin)
    least = smallest_p(len(left), len(right), paired=paired)
    log_probs = _log_probs(contrast)
    single = len(left) == len(right) == 1 and contrast.left.shape[1] > 1
    near = verdict == "saturated" or min(*means, 100 - means[0], 100 - means[1]) < NEAR_THE_ENDS
    has_odds = near and CRITERIA[contrast.metric].of_answers
    return Effect(
        name=contrast.name,
        split=contrast.split,
        method=contrast.method,
        arm=contrast.arm,
        left_name=contrast.left_name,
        right_name=contrast.right_name,
        difference=means[0] - means[1],
        interval=interval,
        left=means[0],
        right=means[1],
        left_seeds=tuple(left.tolist()),
        right_seeds=tuple(right.tolist()),
        seeds=(len(left), len(right)),
        paired=paired,
        left_out=contrast.left_out,
        p=p,
        p_holm=adjusted,
        smallest_p=least,
        least_p_holm=min(1.0, least * tests),
        equivalence_p=same,
        margin=margin,
        verdict=verdict,
        seeds_needed=seeds_needed(left, right, tests, margin, paired=paired) if verdict == "inconclusive" else None,
        log_prob_difference=float(log_probs[0].mean() - log_probs[1].mean()) if log_probs else None,
        log_prob_p=permutation_p(*log_probs, paired=paired) if log_probs else None,
        log_odds=log_odds(left / 100, right / 100, contrast.test_examples, paired=paired) if has_odds else None,
        mcnemar=pair_of_runs(contrast.left[0], contrast.right[0]) if single else None,
        dev=(100 * contrast.dev[0], 100 * contrast.dev[1]) if unlike_on_dev(*contrast.dev) else None,
    )


def unlike_on_dev(left: float, right: float) -> bool:
    """Whether a side does not reach half of what the other does on examples like those that both were trained on.

    What they do on other examples then says little of how they generalise. No if one is NaN.
    """
    return min(left, right) < max(left, right) / 2


def _log_probs(contrast: Contrast) -> tuple[Scores, Scores] | None:
    left, right = contrast.log_prob_left, contrast.log_prob_right
    if left is None or right is None or not (np.isfinite(left).all() and np.isfinite(right).all()):
        return None
    return left, right


def verdict_of(
    left: float, right: float, p: float, same: float | None, interval: Interval | None, margin: float
) -> Verdict:
    """What is said of means left and right (in %), an adjusted p, the p of equivalence, and an interval.

    The p speaks of seeds on this very test set; the interval of other test examples too. An effect needs both. A
    difference that shows within the margin of an end is one all the same; that none shows there says nothing, as any
    two sides that are both so low, or so high, are within the margin of each other.
    """
    if no_room(left, right):
        return "saturated"
    if p < LEVEL and not holds_zero(interval):
        return "holds" if left > right else "reversed"
    if same is None or same >= LEVEL:
        return "inconclusive"
    return "saturated" if no_room(left, right, margin) else "equivalent"


def no_room(left: float, right: float, room: float = ROOM) -> bool:
    """Whether both means (in %) are so near to one end that the metric cannot tell them apart."""
    return max(left, right) <= room or min(left, right) >= 100 - room


def holds_zero(interval: Interval | None) -> bool:
    """Whether an interval leaves zero possible; there is none of single seeds."""
    return interval is not None and interval.low <= 0 <= interval.high
