"""The verdict on an effect: what may be said of it, and what it would take to say more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from petransfer.effects.statistics import (
    LEVEL,
    Interval,
    Scores,
    difference_interval,
    equivalence_p,
    holm,
    permutation_p,
    seeds_needed,
    smallest_p,
)

Verdict = Literal["holds", "reversed", "equivalent", "inconclusive", "saturated"]

# Points of EM within which two arms count as equal unless a recipe says otherwise.
MARGIN = 5.0
# Both arms nearer than this to 0 or to 100 % leave EM no room to differ.
ROOM = 1.0


@dataclass(frozen=True)
class Contrast:
    """Two groups of runs on the same test examples, ready to be compared.

    left, right: exact match, (seeds, examples), 0 or 1. log_prob_left, log_prob_right: the mean log-probability per
    target token of each run. categories: (examples,) numbers of categories.
    """

    name: str
    split: str
    method: str
    left: Scores
    right: Scores
    log_prob_left: Scores
    log_prob_right: Scores
    categories: np.ndarray


@dataclass(frozen=True)
class Effect:
    """An effect as effects.json has it. Differences and intervals in points of EM; log_prob in nats per target token.

    p: exact, over seeds. p_holm: adjusted for the study's effects. smallest_p: what so few seeds could give at best.
    seeds_needed: a group, where the verdict is inconclusive and the seeds' spread is known.
    """

    name: str
    split: str
    method: str
    difference: float
    interval: Interval | None
    left: float
    right: float
    seeds: tuple[int, int]
    p: float
    p_holm: float
    smallest_p: float
    equivalence_p: float | None
    margin: float
    verdict: Verdict
    seeds_needed: int | None
    log_prob_difference: float
    log_prob_p: float


def judge(contrasts: list[Contrast], margin: float = MARGIN, draws: int = 2000) -> list[Effect]:
    """The effects of one study, whose p values are adjusted for each other."""
    p_values = [permutation_p(contrast.left.mean(1), contrast.right.mean(1)) for contrast in contrasts]
    return [
        _effect(contrast, p, adjusted, len(contrasts), margin, draws)
        for contrast, p, adjusted in zip(contrasts, p_values, holm(p_values), strict=True)
    ]


def _effect(contrast: Contrast, p: float, adjusted: float, tests: int, margin: float, draws: int) -> Effect:
    left, right = 100 * contrast.left.mean(1), 100 * contrast.right.mean(1)
    difference = float(left.mean() - right.mean())
    same = equivalence_p(left, right, margin)
    verdict = _verdict(float(left.mean()), float(right.mean()), adjusted, same)
    needed = seeds_needed(left, right, tests, margin) if verdict == "inconclusive" else None
    return Effect(
        name=contrast.name,
        split=contrast.split,
        method=contrast.method,
        difference=difference,
        interval=difference_interval(100 * contrast.left, 100 * contrast.right, contrast.categories, draws=draws),
        left=float(left.mean()),
        right=float(right.mean()),
        seeds=(len(left), len(right)),
        p=p,
        p_holm=adjusted,
        smallest_p=smallest_p(len(left), len(right)),
        equivalence_p=same,
        margin=margin,
        verdict=verdict,
        seeds_needed=needed,
        log_prob_difference=float(contrast.log_prob_left.mean() - contrast.log_prob_right.mean()),
        log_prob_p=permutation_p(contrast.log_prob_left, contrast.log_prob_right),
    )


def _verdict(left: float, right: float, p: float, same: float | None) -> Verdict:
    if max(left, right) <= ROOM or min(left, right) >= 100 - ROOM:
        return "saturated"
    if p < LEVEL:
        return "holds" if left > right else "reversed"
    return "equivalent" if same is not None and same < LEVEL else "inconclusive"


def sentence(effect: Effect) -> str:
    """One line for people."""
    about = f"{effect.name} on {effect.split} ({effect.method})"
    interval = f" [{effect.interval.low:+.1f}, {effect.interval.high:+.1f}]" if effect.interval else ""
    seeds = f"{effect.seeds[0]} and {effect.seeds[1]} seeds"
    verdict: str = effect.verdict
    if verdict == "inconclusive":
        verdict += (
            f", {effect.seeds_needed} seeds an arm needed" if effect.seeds_needed else ", one seed decides nothing"
        )
    if verdict == "saturated":
        verdict += f", log p per token {effect.log_prob_difference:+.3f} (p {effect.log_prob_p:.3f})"
    return f"{about}: {effect.difference:+.1f} points of test EM{interval}, p {effect.p_holm:.3f}, {seeds}: {verdict}"
