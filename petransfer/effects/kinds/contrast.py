"""The difference between two arms, or between two methods in one arm, with its verdict.

The test is the exact permutation test over seeds. The verdicts `holds` and `reversed` also require that the interval of
the difference excludes zero, because the test can also reject for a difference in spread alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from petransfer.effects.criteria import CRITERIA, Criterion
from petransfer.effects.drawing import label_of, plot_forest
from petransfer.effects.intervals import Interval, Scores
from petransfer.effects.kind import EffectKind, HolmResult, Missing, Thresholds
from petransfer.effects.pairs import Contrast, arms_under, compared, dev_of
from petransfer.effects.seed_counts import LEVEL, smallest_p
from petransfer.effects.statistics import (
    McNemarResult,
    Odds,
    equivalence_p,
    holm,
    log_odds,
    mcnemar_test,
    permutation_p,
    seeds_needed,
)
from petransfer.effects.verdicts import NEAR_THE_ENDS, Verdict, verdict_of
from petransfer.effects.wording import (
    bounds,
    capital,
    interval_text,
    p_text,
    p_value,
    plain,
    seeds_text,
    signed,
    unpaired,
)
from petransfer.plurals import count
from petransfer.recipe.effect_requests import RequestedEffect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from petransfer.effects.runs import Runs


@dataclass(frozen=True)
class Effect:
    """A difference between two arms or methods (left and right), with its verdict, as in effects.json.

    Attributes:
        difference, interval: left minus right, in percentage points.
        left, right: mean scores in percent.
        left_seeds, right_seeds: score of each seed in percent.
        left_out: number of runs that are not used, because the other group lacks their seed.
        p: p value of the permutation test over seeds.
        p_holm: `p` after Holm's adjustment. None if an arm has not learnt the task.
        smallest_p: smallest possible p value with this number of seeds.
        least_p_holm: `smallest_p` after Holm's adjustment.
        equivalence_p: p value of the equivalence test. None if there are too few seeds.
        margin: equivalence margin in percentage points.
        smallest_effect: smallest difference, in percentage points, that can have the verdict `holds` or `reversed`.
        because: reason for the verdict. '' for `holds` and `reversed`.
        seeds_needed: number of seeds per group that can detect the difference. Given only for `inconclusive`.
        log_prob_difference: difference of the mean log-probabilities, in nats per target token.
        log_prob_p: p value of `log_prob_difference`, without adjustment.
        log_odds: difference of the mean log-odds. Given only for scores near 0 % or 100 %.
        mcnemar: result of McNemar's test. Given only for one run per group.
        dev: dev scores of left and right in percent.
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
    p_holm: float | None
    smallest_p: float
    least_p_holm: float
    equivalence_p: float | None
    margin: float
    smallest_effect: float
    verdict: Verdict
    because: str
    seeds_needed: int | None
    log_prob_difference: float | None
    log_prob_p: float | None
    log_odds: Odds | None
    mcnemar: McNemarResult | None
    dev: tuple[float, float] | None


def collect(effect: RequestedEffect, split: str, runs: Runs) -> Iterator[Contrast | Missing]:
    """Yield the contrast of two arms under each method, or of two methods in each arm.

    Yields `Missing` for a contrast that cannot be estimated.
    """
    if effect.kind == "arms":
        for method in runs.methods(effect.left, split):
            yield arms_under(effect, split, method, runs)
        return
    for arm in effect.arms:
        # Skip an arm that the study does not train by both methods. For example, `scratch` always trains all weights.
        if {effect.left, effect.right} <= set(runs.methods(arm, split)):
            yield _methods_in(arm, effect, split, runs)


def _methods_in(arm: str, effect: RequestedEffect, split: str, runs: Runs) -> Contrast | Missing:
    left, right = (runs.scored(arm, method, split, effect.categories) for method in (effect.left, effect.right))
    if left and right:
        names = {"method": "", "arm": arm, "left_name": effect.left, "right_name": effect.right}
        contrast = compared(effect.name, split, left, right, paired=effect.paired, **names)
        if len(contrast.left):
            return contrast
        why = "no seed was run with both methods"
    else:
        why = runs.why_missing(arm, effect.right if left else effect.left, split, effect.categories)
    return Missing(f"{effect.name} on {split} ({arm}): not estimated, because {why}")


def raw_p(contrast: Contrast) -> float:
    """Compute the p value of the permutation test over seeds, without Holm's adjustment."""
    return permutation_p(contrast.left.mean(1), contrast.right.mean(1), paired=contrast.paired)


def tested_p(contrast: Contrast, thresholds: Thresholds) -> float | None:
    """Compute the p value before Holm's adjustment. None if an arm has not learnt the task."""
    return raw_p(contrast) if contrast.learnt(thresholds.learnt) else None


def judge(contrasts: Sequence[Contrast], thresholds: Thresholds | None = None) -> list[Effect]:
    """Return the effect of each contrast with its verdict. All p values are adjusted together (Holm)."""
    limits = thresholds or Thresholds()
    p_values = [tested_p(contrast, limits) for contrast in contrasts]
    adjusted = holm(p_values)
    tests = sum(p is not None for p in p_values)
    return [judge_one(contrast, HolmResult(p, tests), limits) for contrast, p in zip(contrasts, adjusted, strict=True)]


def judge_one(contrast: Contrast, holm_result: HolmResult, thresholds: Thresholds) -> Effect:
    """Return the effect of one contrast with its verdict."""
    paired = contrast.paired
    left, right = contrast.percent
    means = float(left.mean()), float(right.mean())
    least = smallest_p(len(left), len(right), paired=paired)
    odds = _odds_near_the_ends(contrast, means, thresholds)
    p_of_equivalence = equivalence_p(left, right, thresholds.margin, paired=paired)
    needed = seeds_needed(left, right, max(1, holm_result.tests), thresholds.margin, paired=paired)
    verdict, because = verdict_of(contrast, means, holm_result, p_of_equivalence, odds, needed, thresholds)
    log_probs = _log_probs(contrast)
    single = len(left) == len(right) == 1 and contrast.left.shape[1] > 1
    return Effect(
        name=contrast.name,
        split=contrast.split,
        method=contrast.method,
        arm=contrast.arm,
        left_name=contrast.left_name,
        right_name=contrast.right_name,
        difference=means[0] - means[1],
        interval=contrast.interval,
        left=means[0],
        right=means[1],
        left_seeds=tuple(left.tolist()),
        right_seeds=tuple(right.tolist()),
        seeds=(len(left), len(right)),
        paired=paired,
        left_out=contrast.left_out,
        p=raw_p(contrast),
        p_holm=holm_result.p_holm,
        smallest_p=least,
        least_p_holm=min(1.0, least * max(1, holm_result.tests)),
        equivalence_p=p_of_equivalence,
        margin=thresholds.margin,
        smallest_effect=thresholds.smallest_effect,
        verdict=verdict,
        because=because,
        seeds_needed=needed if verdict == "inconclusive" else None,
        log_prob_difference=float(log_probs[0].mean() - log_probs[1].mean()) if log_probs else None,
        log_prob_p=permutation_p(*log_probs, paired=paired) if log_probs else None,
        log_odds=odds,
        mcnemar=mcnemar_test(contrast.left[0], contrast.right[0]) if single else None,
        dev=dev_of(contrast),
    )


def _odds_near_the_ends(contrast: Contrast, means: tuple[float, float], thresholds: Thresholds) -> Odds | None:
    """Return the difference of the mean log-odds if a mean score is near 0 % or 100 %, else None."""
    is_near = min(*means, 100 - means[0], 100 - means[1]) < max(NEAR_THE_ENDS, thresholds.margin)
    if not is_near or not CRITERIA[contrast.metric].of_answers:
        return None
    left, right = contrast.percent
    return log_odds(left / 100, right / 100, contrast.test_examples, paired=contrast.paired)


def _log_probs(contrast: Contrast) -> tuple[Scores, Scores] | None:
    left, right = contrast.log_prob_left, contrast.log_prob_right
    if left is None or right is None or not (np.isfinite(left).all() and np.isfinite(right).all()):
        return None
    return left, right


# The reasons for the verdicts that have no reason in effects.json.
_REASONS = {
    "holds": "p is below 0.05 and the interval excludes zero",
    "reversed": "p is below 0.05 and the interval excludes zero, but the difference is negative",
}


def sentence(effect: dict[str, Any], criterion: Criterion) -> str:
    """Return an entry of effects.json as text."""
    place = effect["arm"] or effect["method"]
    tested = f"{p_text(effect['p_holm'])} (Holm)" if effect["p_holm"] is not None else "not tested"
    scores = f"{plain(effect['left'])} against {plain(effect['right'])}{criterion.unit}"
    numbers = "; ".join(filter(None, (interval_text(effect["interval"]), scores)))
    seeds = seeds_text(effect["seeds"], effect["paired"], "method" if effect["arm"] else "arm")
    seen = (
        f"{label_of(effect)} on {effect['split']} ({place}): {signed(effect['difference'])} points of test "
        f"{criterion.word} ({numbers}), {tested}, {seeds}."
    )
    reason = effect["because"] or _REASONS.get(effect["verdict"], "")
    return f"{seen} {capital(effect['verdict'])}{f': {reason}' if reason else ''}."


def details(effect: dict[str, Any], criterion: Criterion) -> str:
    """Return further numbers of an effect as text, and the effect in Orhan (2021)."""
    parts = []
    if effect["p_holm"] is not None and effect["least_p_holm"] >= LEVEL:
        parts.append(f"The smallest possible p value with so few seeds is {p_value(effect['least_p_holm'])} (Holm).")
    if effect["left_out"]:
        parts.append(f"{unpaired(effect['left_out'])}.")
    if effect["dev"]:
        parts.append(f"On dev: {plain(effect['dev'][0])} and {plain(effect['dev'][1])}{criterion.unit}.")
    odds = effect["log_odds"]
    if odds:
        parts.append(f"Log-odds: {signed(odds['difference'], 2)}{bounds(odds['interval'], 2)}.")
    if effect["log_prob_difference"] is not None:
        nats = signed(-effect["log_prob_difference"], 3)
        p = p_text(effect["log_prob_p"])
        parts.append(
            f"Difference in test loss per token: {nats} nats ({p}, without Holm's correction; not part of the verdict)."
        )
    pair = effect["mcnemar"]
    if pair:
        left = count(pair["only_left"], "example")
        only = f"{left} right only in the first run, {pair['only_right']} only in the second"
        parts.append(f"McNemar's test of these two runs alone: {only}, {p_text(pair['p'])}.")
    return " ".join([*parts, *_paper(effect)])


def _paper(effect: dict[str, Any]) -> list[str]:
    paper = effect.get("paper")
    if not paper:
        return []
    points = f"{signed(paper['difference'])} points{bounds(paper['interval'])}"
    p = f"{p_text(paper['p_holm'])} (Holm)" if "p_holm" in paper else f"{p_text(paper['p'])} (unadjusted)"
    seeds = seeds_text(paper["seeds"], False)
    verdict = capital(paper["verdict"])
    return [f"The paper (family {paper['family']}, all weights trained): {points}, {p}, {seeds}. {verdict}."]


def plot(effects: Sequence[dict[str, Any]], criterion: Criterion, width: float | None = None) -> Figure | None:
    return plot_forest(effects, criterion.word, width) if effects else None


CONTRAST = EffectKind(
    name="contrast",
    key="effects",
    heading="Effects",
    requests=("arms", "methods"),
    order=0,
    collect=collect,
    p_value=tested_p,
    judge=judge_one,
    sentence=sentence,
    details=details,
    plot=plot,
)
