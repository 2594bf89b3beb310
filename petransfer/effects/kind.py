"""The class and the registry of the kinds of effects, such as contrast, scale and retention.

Each file in `effects/kinds/` declares one kind; other packages can declare more.
"""

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

    margin: in percentage points; the verdict is `equivalent` if the tests show a difference smaller than the margin.
    smallest_effect: in percentage points; a smaller difference never has the verdict `holds` or `reversed`.
    learnt: in percent; an arm with a lower exact match on dev counts as not having learnt the task.
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
    """The result of testing an effect together with the other effects of its family.

    By default all effects of a study are one family; a recipe can divide them into several.

    p_holm: the effect's p value after Holm's adjustment; None if the effect is not tested. tests: number of effects
    that are tested together.
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

    name: the kind's name in the registry. key: the key of the list of these effects in effects.json. heading: the title
    of their section on a report's page. requests: the values of `RequestedEffect.kind` that this kind handles.
    order: kinds with a smaller number are judged and shown first.
    collect: takes a requested effect, a split and the study's runs. It yields the data of each effect to estimate, or
    `Missing` if an effect cannot be estimated.
    p_value: takes the data of one effect and returns its p value before adjustment; None if the effect is not tested.
    judge: takes the data of one effect, its `Family` and the thresholds. It returns the effect with its estimate and
    its verdict, as a dataclass whose fields are written to effects.json.
    sentence: takes an effect as in effects.json and the criterion, and returns the effect and its verdict as text.
    details: takes the same arguments as `sentence`, and returns further numbers as text, '' if there are none.
    plot: takes the list of these effects in effects.json, the criterion and a width in inches. It returns a figure, or
    None if there is nothing to draw.
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
    """Return all kinds of effects, including the kinds of other packages, sorted by `order`."""
    return sorted(KINDS.values(), key=lambda kind: (kind.order, kind.name))
