"""The parts of a kind of effect. Each file in `effects/kinds/` declares one kind; other packages can declare more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from petransfer.effects.criteria import Criterion
from petransfer.recipe.effect_requests import RequestedEffect
from petransfer.recipe.schema import LEARNT, MARGIN, SMALLEST_EFFECT, Recipe
from petransfer.registries import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from petransfer.effects.runs import Runs


@dataclass(frozen=True)
class Thresholds:
    """The limits that a recipe declares for verdicts.

    margin: two sides are equivalent if their difference is certainly smaller than this, in points. smallest_effect: a
    smaller difference, in points, never has the verdict `holds` or `reversed`. learnt: a side with a lower dev exact
    match, in percent, has not learnt the task.
    """

    margin: float = MARGIN
    smallest_effect: float = SMALLEST_EFFECT
    learnt: float = LEARNT

    @classmethod
    def of(cls, recipe: Recipe) -> Thresholds:
        """Return the thresholds of a recipe."""
        return cls(recipe.margin, recipe.smallest_effect, recipe.learnt)


@dataclass(frozen=True)
class Family:
    """The multiple testing of an effect together with the other effects of a study.

    p_holm: the effect's p after Holm's adjustment, None if it is not tested. tests: number of effects tested together.
    """

    p_holm: float | None
    tests: int


@dataclass(frozen=True)
class Missing:
    """An effect that cannot be estimated. why: a sentence with the reason."""

    why: str


@dataclass(frozen=True)
class Kind:
    """A kind of effect: its data, its test, its sentence and its plot.

    name: the name that requests in recipes use. key: the name of the list in effects.json. heading: the title on the
    page. requests: the values of `RequestedEffect.kind` that this kind handles. order: kinds are judged and shown in
    this order.
    collect: yields on one split the data to estimate an effect from, or a `Missing` if it cannot be estimated.
    p_value: returns the p before adjustment, None if the item is not tested. judge: returns a dataclass for
    effects.json. sentence: returns the effect and its verdict as text. details: returns further figures, or ''.
    plot: makes a figure from the list of effects, the criterion and a width in inches; None if there is nothing to
    draw.
    """

    name: str
    key: str
    heading: str
    requests: tuple[str, ...]
    order: int
    collect: Callable[[RequestedEffect, str, Runs], Iterator[Any]]
    p_value: Callable[[Any, Thresholds], float | None]
    judge: Callable[[Any, Family, Thresholds], Any]
    sentence: Callable[[dict[str, Any], Criterion], str]
    details: Callable[[dict[str, Any], Criterion], str]
    plot: Callable[..., Figure | None]


KINDS = Registry("kind of effect", Kind, "petransfer.effects.kinds", "petransfer.effects")


def kinds_in_order() -> list[Kind]:
    """Return all kinds of effects, including those of other packages."""
    return sorted(KINDS.values(), key=lambda kind: (kind.order, kind.name))
