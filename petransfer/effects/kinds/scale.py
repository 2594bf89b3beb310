"""Scale effects: an effect in this study's family minus the effect in a smaller family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from petransfer.effects.criteria import CRITERIA, Criterion
from petransfer.effects.drawing import plot_forest
from petransfer.effects.intervals import Interval, Scores, drawn_means, interval_of_draws, possible, sum_interval
from petransfer.effects.kind import EffectKind, HolmResult, Missing, Thresholds
from petransfer.effects.pairs import ContrastPair, Side, arms_under, in_points, other_study, sides_of
from petransfer.effects.runs import Runs
from petransfer.effects.seed_counts import LEVEL, fewest_for_verdict, smallest_p
from petransfer.effects.statistics import holm, welch_p
from petransfer.effects.verdicts import Verdict, are_saturated, within
from petransfer.effects.wording import bounds, capital, p_text, plain, signed
from petransfer.recipe.effect_requests import RequestedEffect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIGNS = (1.0, -1.0, -1.0, 1.0)


@dataclass(frozen=True)
class Scale:
    """A scale effect as in effects.json: the effect `here` (larger family) minus the effect `there`.

    Attributes:
        difference, interval: `here` minus `there`, in percentage points.
        of_left, of_right: parts of the difference that come from the left and the right arm.
        p: p value of Welch's t test over the four groups of seeds.
        p_holm: `p` after Holm's adjustment. None if an arm has not learnt the task.
        margin: equivalence margin in percentage points.
        because: reason for the verdict. '' for `holds` and `reversed`.
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
    p_holm: float | None
    margin: float
    verdict: Verdict
    because: str


def collect(effect: RequestedEffect, split: str, runs: Runs) -> Iterator[ContrastPair | Missing]:
    """Yield the contrast in this study together with the contrast in the other study, for each method.

    Yields `Missing` if a contrast cannot be estimated.
    """
    other = other_study(effect, split, runs)
    if isinstance(other, Missing):
        yield other
        return
    for method in runs.methods(effect.left, split):
        here = arms_under(effect, split, method, runs)
        if isinstance(here, Missing):
            yield here
            continue
        there = arms_under(effect, split, _like(method, effect.left, split, other), other)
        names = runs.recipe.family_name, other.recipe.family_name
        yield there if isinstance(there, Missing) else ContrastPair(here, there, *names)


def _like(method: str, arm: str, split: str, other: Runs) -> str:
    # If the other study trains the arm by one other method only, that method is compared.
    available = other.methods(arm, split)
    return available[0] if method not in available and len(available) == 1 else method


def scale_p(pair: ContrastPair) -> float:
    """Compute the p value of a scale effect, before Holm's adjustment. 1 if a group has a single seed."""
    here, there = pair.here, pair.there
    counts = [len(side) for side in (here.left, here.right, there.left, there.right)]
    if min(counts) < 2:
        return 1.0
    found = welch_p(_seed_means(pair), pair.weights(*_SIGNS))
    if found is None:  # within each group, all seeds have the same score
        found = 0.0 if _sum(pair) else 1.0
    # An exact test of `here` or of `there` alone cannot give a smaller p value than `smallest_p`.
    return max(found, smallest_p(*counts[:2]), smallest_p(*counts[2:]))


def tested_p(pair: ContrastPair, thresholds: Thresholds) -> float | None:
    """Compute the p value before Holm's adjustment. None if an arm has not learnt the task."""
    learnt = pair.here.learnt(thresholds.learnt) and pair.there.learnt(thresholds.learnt)
    return scale_p(pair) if learnt else None


def judge(pairs: Sequence[ContrastPair], thresholds: Thresholds | None = None) -> list[Scale]:
    """Return how much each effect differs between two model sizes. All p values are adjusted together (Holm)."""
    limits = thresholds or Thresholds()
    p_values = [tested_p(pair, limits) for pair in pairs]
    tests = sum(p is not None for p in p_values)
    return [judge_one(pair, HolmResult(p, tests), limits) for pair, p in zip(pairs, holm(p_values), strict=True)]


def judge_one(pair: ContrastPair, holm_result: HolmResult, thresholds: Thresholds) -> Scale:
    """Return one scale effect with its verdict."""
    here, there = sides_of(pair)
    interval = difference_of_differences(pair)
    verdict, because = _verdict(pair, here, there, interval, holm_result.p_holm, thresholds)
    return Scale(
        name=pair.here.name,
        split=pair.here.split,
        method=pair.here.method,
        here=here,
        there=there,
        difference=here.difference - there.difference,
        interval=interval,
        of_left=here.left - there.left,
        of_right=there.right - here.right,
        p=scale_p(pair),
        p_holm=holm_result.p_holm,
        margin=thresholds.margin,
        verdict=verdict,
        because=because,
    )


def difference_of_differences(pair: ContrastPair) -> Interval | None:
    """Compute the 95 % interval of a scale effect, in percentage points. None if a group has a single seed."""
    weights, samples = pair.weights(*_SIGNS), pair.samples
    if pair.same_examples:
        return in_points(sum_interval(samples, weights, pair.here.categories, pair.here.test_examples))
    if min(map(len, samples.values())) < 2:
        return None
    # The two contrasts have different test examples, so the examples of each contrast are drawn separately.
    drawn: dict[str, Scores] = {}
    for seed, (contrast, keys) in enumerate(((pair.here, pair.keys[:2]), (pair.there, pair.keys[2:]))):
        mine = {key: samples[key] for key in keys}
        drawn |= drawn_means(mine, contrast.categories, contrast.test_examples, seed=seed)
    total_b = np.sum([weights[key] * drawn[key] for key in drawn], axis=0)
    return in_points(interval_of_draws(total_b, _sum(pair) / 100, possible(weights)))


def other_examples_note(pairs: Sequence[ContrastPair]) -> str:
    """Return a note on scale effects between studies with different test examples. '' if there are none."""
    names = dict.fromkeys(f"{pair.here.name} on {pair.here.split}" for pair in pairs if not pair.same_examples)
    if not names:
        return ""
    return (
        f"The two studies of a scale effect have different test examples: {', '.join(names)}. Their difference can "
        "therefore also come from the examples."
    )


def _verdict(
    pair: ContrastPair, here: Side, there: Side, interval: Interval | None, p: float | None, limits: Thresholds
) -> tuple[Verdict, str]:
    word = CRITERIA[pair.here.metric].word
    saturated = f"in both families, {word} is too near 0 % or 100 % to show a difference"
    difference = here.difference - there.difference
    if not (pair.here.learnt(limits.learnt) and pair.there.learnt(limits.learnt)):
        return "not learnt", f"an arm is below {limits.learnt:g} % on dev"
    fewest = fewest_for_verdict()
    if min(map(len, pair.samples.values())) < fewest:
        return "inconclusive", f"a verdict needs at least {fewest} seeds per arm"
    if are_saturated(here.left, here.right) and are_saturated(there.left, there.right):
        return "saturated", saturated
    clear = p is not None and p < LEVEL and not (interval is not None and interval.holds_zero)
    if clear and abs(difference) >= limits.smallest_effect:
        return ("holds" if difference > 0 else "reversed"), ""
    if not (_equivalent(pair, limits.margin) and within(interval, limits.margin)):
        return "inconclusive", "more seeds are needed"
    if are_saturated(here.left, here.right, limits.margin) and are_saturated(there.left, there.right, limits.margin):
        return "saturated", saturated
    return "equivalent", f"the effect changes by less than {limits.margin:g} points"


def _equivalent(pair: ContrastPair, margin: float) -> bool:
    """Return whether an equivalence test shows a scale effect below `margin` percentage points."""
    seeds = _seed_means(pair)
    if abs(_sum(pair)) >= margin:
        return False
    both = [welch_p(seeds, pair.weights(*_SIGNS), against=at) for at in (-margin, margin)]
    return all(p is None or p / 2 < LEVEL for p in both)


def _seed_means(pair: ContrastPair) -> dict[str, np.ndarray]:
    return {key: 100 * scores.mean(1) for key, scores in pair.samples.items()}


def _sum(pair: ContrastPair) -> float:
    weights = pair.weights(*_SIGNS)
    return float(np.round(sum(weights[key] * seeds.mean() for key, seeds in _seed_means(pair).items()), 9))


_CONCLUSIONS = {"holds": "The effect grows with scale", "reversed": "The effect shrinks with scale"}


def sentence(scale: dict[str, Any], criterion: Criterion) -> str:
    """Return an entry of `scales` in effects.json as text."""
    here, there = scale["here"], scale["there"]
    sides = " and ".join(
        f"{signed(side['difference'])} points{bounds(side['interval'])} in {side['name']} "
        f"({plain(side['left'])} against {plain(side['right'])}{criterion.unit})"
        for side in (here, there)
    )
    moved = f"of which {signed(scale['of_left'])} from the first arm and {signed(scale['of_right'])} from the second"
    tested = f"{p_text(scale['p_holm'])} (Holm)" if scale["p_holm"] is not None else "not tested"
    total = f"{signed(scale['difference'])} points{bounds(scale['interval'])}"
    conclusion = _CONCLUSIONS.get(scale["verdict"], capital(scale["verdict"]))
    because = f": {scale['because']}" if scale["because"] else ""
    about = f"Scale of {scale['name']} on {scale['split']} ({scale['method']})"
    return f"{about}: {sides}. Difference: {total}, {moved}, {tested}. {conclusion}{because}."


def details(scale: dict[str, Any], criterion: Criterion) -> str:
    return (
        "p is the p value of Welch's t test on the four groups of seeds. It is never smaller than the smallest p value "
        "that an exact test of one of the two effects can give."
    )


def plot(scales: Sequence[dict[str, Any]], criterion: Criterion, width: float | None = None) -> Figure | None:
    rows = [scale | {"arm": "", "left_name": ""} for scale in scales]
    return plot_forest(rows, criterion.word, width) if rows else None


SCALE = EffectKind(
    name="scale",
    key="scales",
    heading="Scale",
    requests=("scale",),
    order=1,
    collect=collect,
    p_value=tested_p,
    judge=judge_one,
    sentence=sentence,
    details=details,
    plot=plot,
)
