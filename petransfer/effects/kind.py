"""What a kind of effect consists of. Each file in `effects/kinds/` declares one; other packages can declare more."""

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
    """The limits that a recipe declares for verdicts, in points or percent.

    margin: two sides whose difference is certainly smaller are equivalent. smallest_effect: a smaller difference never
    reads `holds` or `reversed`. learnt: a side below this dev exact match has not learnt the task.
    """

    margin: float = MARGIN
    smallest_effect: float = SMALLEST_EFFECT
    learnt: float = LEARNT

    @classmethod
    def of(cls, recipe: Recipe) -> Thresholds:
        """Take them from a recipe."""
        return cls(recipe.margin, recipe.smallest_effect, recipe.learnt)


@dataclass(frozen=True)
class Family:
    """What an effect must know of the effects that are tested with it.

    p_holm: its own p after Holm's adjustment, None where it is not tested. tests: how many are tested together.
    """

    p_holm: float | None
    tests: int


@dataclass(frozen=True)
class Missing:
    """An effect that cannot be estimated, in a sentence that says why."""

    why: str


@dataclass(frozen=True)
class Kind:
    """A kind of effect: its data, its test, its sentence and its plot.

    name: the name that requests in recipes use. key: the list in effects.json. heading: the title on the page.
    requests: the values of `RequestedEffect.kind` that it answers. order: kinds are judged and shown in this order.
    collect: yields what the effect is estimated from, or why it cannot be, on one split.
    p_value: the p before adjustment, None where the item is not tested. judge: gives a dataclass for effects.json.
    sentence: the effect and its verdict for people. details: what a careful reader also wants, or nothing.
    plot: makes a figure from the list of effects, the criterion and a width in inches; None where there is nothing to
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
    """Return every kind of effect, those of other packages included."""
    return sorted(KINDS.values(), key=lambda kind: (kind.order, kind.name))
