"""The rules that turn the difference between two sides into a verdict with a reason."""

from __future__ import annotations

from typing import Literal

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.intervals import Interval
from petransfer.effects.kind import HolmResult, Thresholds
from petransfer.effects.pairs import Contrast
from petransfer.effects.seed_counts import LEVEL, fewest_for_verdict
from petransfer.effects.statistics import Odds
from petransfer.plurals import count

Verdict = Literal["holds", "reversed", "equivalent", "inconclusive", "saturated", "not learnt"]

# In percentage points. If both sides are within this distance of 0 %, or both of 100 %, the metric cannot show a
# difference.
SATURATION_DISTANCE = 1.0
# In percentage points. If a side is within this distance (or the margin, if that is larger) of 0 % or 100 %, the
# verdicts `holds` and `reversed` also require two things: the difference of the log-odds has the same sign as the
# difference of the scores, and its interval excludes zero.
NEAR_THE_ENDS = 5.0


def verdict_of(
    contrast: Contrast,
    means: tuple[float, float],
    holm_result: HolmResult,
    equivalence_p: float | None,
    odds: Odds | None,
    needed: int | None,
    limits: Thresholds,
) -> tuple[Verdict, str]:
    """Return the verdict about a contrast and its reason. The reason is '' for `holds` and `reversed`.

    Args:
        means: mean scores of left and right in percent.
        equivalence_p: p value of the equivalence test. None if there are too few seeds.
        odds: difference of the mean log-odds. None if the scores are not near 0 % or 100 %.
        needed: number of seeds per group that can detect the difference. None if unknown.
    """
    left, right = means
    word = CRITERIA[contrast.metric].word
    noun = "method" if contrast.arm else "arm"
    if not contrast.learnt(limits.learnt):
        return "not learnt", _not_learnt(contrast, limits)
    advice = _advice(contrast, left - right, needed, limits)
    if too_few := _too_few_seeds(contrast):
        return "inconclusive", "; ".join(filter(None, (too_few, advice)))
    if are_saturated(left, right):
        return "saturated", _saturated(noun, SATURATION_DISTANCE, left, word)
    obstacle = _obstacle(contrast, left - right, holm_result.p_holm, odds, limits)
    if obstacle is None:
        return ("holds" if left > right else "reversed"), ""
    if equivalence_p is not None and equivalence_p < LEVEL and within(contrast.interval, limits.margin):
        if are_saturated(left, right, limits.margin):
            return "saturated", _saturated(noun, limits.margin, left, word)
        return "equivalent", f"an equivalence test (p < 0.05) shows a difference below {limits.margin:g} points"
    if obstacle:
        return "inconclusive", obstacle
    large_p = "" if holm_result.p_holm is None else "p is not below 0.05"
    return "inconclusive", "; ".join(filter(None, (large_p, advice)))


def _too_few_seeds(contrast: Contrast) -> str:
    """Return the reason why there is no verdict yet. '' if there are enough seeds."""
    seeds, fewest = min(len(contrast.left), len(contrast.right)), fewest_for_verdict(paired=contrast.paired)
    if seeds >= fewest:
        return ""
    found = f"{count(seeds, 'pair')} of seeds" if contrast.paired else count(seeds, "seed")
    sides = "" if contrast.paired else " on each side"
    return f"{found} {'is' if seeds == 1 else 'are'} too few; a verdict needs {fewest}{sides}"


def _advice(contrast: Contrast, difference: float, needed: int | None, limits: Thresholds) -> str:
    """Return how many seeds can detect the difference. '' if this is unknown, or if there are as many already."""
    if needed is None or needed <= min(len(contrast.left), len(contrast.right)):
        return ""
    size = max(abs(difference), limits.margin)  # the number of seeds is computed for this difference
    unit = "pairs of seeds" if contrast.paired else f"seeds per {'method' if contrast.arm else 'arm'}"
    return f"to detect a difference of {size:.1f} points in 80 % of all studies, about {needed} {unit} are needed"


def _saturated(noun: str, distance: float, mean: float, word: str) -> str:
    points = "point" if distance == 1 else "points"
    return f"both {noun}s are within {distance:g} {points} of {_end(mean)}, where {word} cannot show a difference"


def within(interval: Interval | None, margin: float) -> bool:
    """Return whether the interval is within the margin around zero. True if there is no interval."""
    # There is no interval if a group has a single seed. The equivalence test then has too few seeds to succeed.
    return interval is None or (-margin < interval.low and interval.high < margin)


def _obstacle(
    contrast: Contrast, difference: float, p: float | None, odds: Odds | None, limits: Thresholds
) -> str | None:
    """Return why the verdict cannot be `holds` or `reversed`. None means that it can be."""
    interval = contrast.interval
    if p is None or p >= LEVEL:
        # '' means that the p value is large or that the contrast is not tested; `verdict_of` then gives another reason
        return ""
    if abs(difference) < limits.smallest_effect:
        return f"the difference is below the smallest effect of interest, {limits.smallest_effect:g} points"
    if interval is not None and interval.holds_zero:
        return "the permutation test finds a difference, but the 95 % interval of the difference includes zero"
    if odds and (odds.interval is None or odds.interval.holds_zero or odds.difference * difference < 0):
        # If nothing varies between seeds, the log-odds have no interval. Then it is enough that both differences have
        # the same sign.
        flat = odds.interval is None and odds.difference * difference > 0
        if not flat:
            return f"scores near 0 % or 100 % are also compared as log-odds, and {_odds_problem(odds, difference)}"
    return None


def _odds_problem(odds: Odds, difference: float) -> str:
    if odds.difference * difference < 0:
        return "the difference in log-odds has the opposite sign"
    if odds.interval is None:
        return "the difference in log-odds is zero"
    return "the 95 % interval of the difference in log-odds includes zero"


def _not_learnt(contrast: Contrast, limits: Thresholds) -> str:
    names = (contrast.left_name or "left", contrast.right_name or "right")
    short = [f"{name} reaches {100 * dev:.1f} % on dev" for name, dev in zip(names, contrast.dev, strict=True)
             if 100 * dev < limits.learnt]  # fmt: skip
    return f"{' and '.join(short)}, below {limits.learnt:g} %"


def _end(mean: float) -> str:
    return "0 %" if mean < 50 else "100 %"


def are_saturated(left: float, right: float, distance: float = SATURATION_DISTANCE) -> bool:
    """Return whether both means, in percent, are within `distance` points of 0 %, or both of 100 %."""
    return max(left, right) <= distance or min(left, right) >= 100 - distance
