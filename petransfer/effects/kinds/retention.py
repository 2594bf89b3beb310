"""Retention: an effect under one method, divided by the effect under another method.

A retention of 1 means that the whole effect is retained. Retention has no test and no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from petransfer.effects.criteria import Criterion
from petransfer.effects.drawing import plot_ratios
from petransfer.effects.intervals import Interval, fieller_interval
from petransfer.effects.kind import EffectKind, Missing, Thresholds
from petransfer.effects.pairs import ContrastPair, Side, arms_under, other_study, sides_of
from petransfer.effects.wording import interval_text, signed
from petransfer.recipe.effect_requests import RequestedEffect, labels_matching

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from petransfer.effects.runs import Runs


@dataclass(frozen=True)
class Retention:
    """A retention as in effects.json: the effect `under` divided by the effect `over`.

    `undefined` is the reason why `ratio` and `interval` are None.
    """

    name: str
    split: str
    under: Side
    over: Side
    ratio: float | None
    interval: Interval | None
    undefined: str | None


def collect(effect: RequestedEffect, split: str, runs: Runs) -> Iterator[ContrastPair | Missing]:
    """Yield the contrast under the method `effect.under` together with the contrast under `effect.over`.

    Yields `Missing` if a contrast cannot be estimated.
    """
    other = other_study(effect, split, runs)
    if isinstance(other, Missing):
        yield other
        return
    labels = labels_matching(effect.over, other.methods(effect.left, split))
    over = labels[0] if len(labels) == 1 else effect.over
    here = arms_under(effect, split, effect.under, runs)
    if isinstance(here, Missing):
        yield here
        return
    there = arms_under(effect, split, over, other)
    if isinstance(there, Missing):
        yield there
        return
    pair = ContrastPair(here, there, effect.under, over)
    why = f"the study {effect.study} has" if effect.study else f"the runs with {over} have"
    about = f"{effect.kind} of {effect.name} on {split}"
    yield pair if pair.same_examples else Missing(f"{about}: not estimated, because {why} other test examples")


def retention(pair: ContrastPair, thresholds: Thresholds | None = None) -> Retention:
    """Divide the effect `pair.here` by the effect `pair.there`, with Fieller's 95 % interval."""
    under, over = sides_of(pair)
    undefined = _undefined(under, over, pair, thresholds or Thresholds())
    interval = None
    if undefined is None:
        weights = pair.weights(1.0, -1.0, 0.0, 0.0), pair.weights(0.0, 0.0, 1.0, -1.0)
        interval = fieller_interval(pair.samples, *weights, pair.here.categories)
        # The interval is unbounded: the effect in the denominator could be zero, and the ratio would be meaningless.
        if interval is None:
            undefined = (
                f"not defined, because the effect under {over.name} is not certain enough to divide by it (the 95 % "
                "interval of the ratio, by Fieller's method, has no limits)"
            )
    ratio = None if undefined else under.difference / over.difference
    return Retention(pair.here.name, pair.here.split, under, over, ratio, interval, undefined)


def _undefined(under: Side, over: Side, pair: ContrastPair, limits: Thresholds) -> str | None:
    for side, contrast in ((over, pair.there), (under, pair.here)):
        if side.interval is None:
            return f"not defined, because the effect under {side.name} has a single seed"
        if not contrast.learnt(limits.learnt):
            return f"not defined, because an arm is below {limits.learnt:g} % on dev under {side.name}"
    return None


def sentence(one: dict[str, Any], criterion: Criterion) -> str:
    """Return an entry of `retentions` in effects.json as text."""
    under, over = one["under"], one["over"]
    compared = f"the effect under {under['name']} as a share of the effect under {over['name']}"
    about = f"Retention of {one['name']} on {one['split']} ({compared})"
    sides = (
        f"The effect is {signed(under['difference'])} points{_interval(under)} under {under['name']} and "
        f"{signed(over['difference'])} points{_interval(over)} under {over['name']}"
    )
    if one["ratio"] is None:
        return f"{about}: {one['undefined']}. {sides}."
    kept, low, high = (
        f"{100 * share:.0f}" for share in (one["ratio"], one["interval"]["low"], one["interval"]["high"])
    )
    shares = f"{kept} % of the effect is retained (95 % interval {low} to {high} %)".replace("-", "\u2212")
    return f"{about}: {shares}. {sides}."


def _interval(side: dict[str, Any]) -> str:
    text = interval_text(side["interval"])
    return f" ({text})" if text else ""


def details(one: dict[str, Any], criterion: Criterion) -> str:
    return ""


def plot(found: Sequence[dict[str, Any]], criterion: Criterion, width: float | None = None) -> Figure | None:
    defined = [one for one in found if one["ratio"] is not None]
    return plot_ratios(defined, width) if defined else None


RETENTION = EffectKind(
    name="retention",
    key="retentions",
    heading="Retention",
    about="A retention is an effect under one method, divided by the same effect under another method: at 100 %, the "
    "whole effect is retained; at 0 %, none of it.",
    requests=("retention",),
    order=2,
    collect=collect,
    p_value=None,
    judge=lambda pair, holm_result, thresholds: retention(pair, thresholds),
    sentence=sentence,
    details=details,
    plot=plot,
)
