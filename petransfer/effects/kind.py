"""The class and the registry of the kinds of effects.

Each file in `effects/kinds/` declares one kind. Other packages can declare more kinds.
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
    """The thresholds for verdicts, from a recipe.

    Attributes:
        margin: equivalence margin in percentage points.
        smallest_effect: smallest difference, in percentage points, that can have the verdict `holds` or `reversed`.
        learnt: smallest exact match on dev, in percent, of an arm that has learnt the task.
    """

    margin: float = MARGIN
    smallest_effect: float = SMALLEST_EFFECT
    learnt: float = LEARNT

    @classmethod
    def of(cls, recipe: Recipe) -> Thresholds:
        return cls(recipe.margin, recipe.smallest_effect, recipe.learnt)


@dataclass(frozen=True)
class HolmResult:
    """An effect's p value after testing several effects together.

    Attributes:
        p_holm: p value after Holm's adjustment. None if the effect is not tested.
        tests: number of effects that are tested together, with the declared effects that have no runs yet.
    """

    p_holm: float | None
    tests: int


@dataclass(frozen=True)
class Missing:
    """An effect that cannot be estimated yet. `why`: a sentence with the reason."""

    why: str


@dataclass(frozen=True)
class EffectKind:
    """A kind of effect: its data, its test, its sentence and its plot.

    Attributes:
        name: name in the registry.
        key: key of the list of these effects in effects.json.
        heading: title of the section in a report.
        requests: values of `RequestedEffect.kind` that this kind handles.
        order: position in reports. Smaller numbers come first.
        collect: function of (requested effect, split, runs). Yields the data of each effect, or `Missing`.
        p_value: function of (data, thresholds). Returns the p value before adjustment. None means not tested. The
            field is None if no effect of this kind is tested.
        judge: function of (data, `HolmResult`, thresholds). Returns the effect with its verdict, as a dataclass.
        sentence: function of (entry of effects.json, criterion). Returns the effect and its verdict as text.
        details: function of (entry of effects.json, criterion). Returns more numbers as text, or ''.
        plot: function of (entries of effects.json, criterion, width in inches). Returns a figure, or None.
        about: what such an effect is, as text above the effects in a report.
    """

    name: str
    key: str
    heading: str
    requests: tuple[str, ...]
    order: int
    collect: Callable[[RequestedEffect, str, Runs], Iterator[Any]]
    p_value: Callable[[Any, Thresholds], float | None] | None
    judge: Callable[[Any, HolmResult, Thresholds], Any]
    sentence: Callable[[dict[str, Any], Criterion], str]
    details: Callable[[dict[str, Any], Criterion], str]
    plot: Callable[..., Figure | None]
    about: str = ""


KINDS = Registry("kind of effect", EffectKind, "petransfer.effects.kinds", "petransfer.effects")


def kinds_in_order() -> list[EffectKind]:
    """Return all kinds of effects, sorted by `order`. Kinds of other packages are included."""
    return sorted(KINDS.values(), key=lambda kind: (kind.order, kind.name))
