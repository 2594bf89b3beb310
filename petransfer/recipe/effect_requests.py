"""What a recipe asks to be compared: arms, methods, an effect across families, and what of an effect a method keeps.

A recipe says it as `english-scratch` (two arms), `lora-full` (two methods) or a mapping; here it becomes one `Wanted`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from petransfer.errors import UserError, unknown
from petransfer.recipe.schema import EffectPart, Recipe, cuts, sides

Kind = Literal["arms", "methods", "scale", "retention"]


@dataclass(frozen=True)
class Wanted:
    """An effect with its names found. left, right: arms, or the labels of two methods, which are compared in `arms`.

    under, over: labels of methods; `over` is what the other study calls it where `study` is given.
    """

    name: str
    kind: Kind
    left: str
    right: str
    arms: tuple[str, ...] = ()
    under: str = ""
    over: str = ""
    study: str = ""


def wanted(recipe: Recipe) -> list[Wanted]:
    """The recipe's effects.

    Raises:
        UserError: one names no arm or method of the recipe, or a method that it cannot tell from others.
    """
    return [_wanted(effect, recipe) for effect in recipe.effects]


def _wanted(effect: str | EffectPart, recipe: Recipe) -> Wanted:
    if isinstance(effect, str):
        return _contrast(effect, recipe)
    if effect.contrast:
        found = _contrast(effect.contrast, recipe)
        if effect.arms and found.kind != "methods":
            raise UserError(f"effects: '{effect.contrast}' compares arms; `arms` belongs to a contrast of methods")
        for arm in effect.arms:
            if arm not in recipe.arms:
                raise unknown(f"arm in the effect '{effect.contrast}'", arm, recipe.arms)
        return replace(found, arms=tuple(effect.arms) or found.arms)
    pair = _arms(effect.scale or effect.retention or "", recipe)
    if effect.scale:
        return Wanted(effect.scale, "scale", *pair, study=effect.study or "")
    labels = [method.label for method in recipe.methods]
    under = _method(effect.under or "", labels, "under")
    over = effect.over or "full"
    if not effect.study:
        over = _method(over, labels, "over")
        if over == under:
            raise UserError(f"effects: the retention of '{effect.retention}' is under and over one method, {under}")
    return Wanted(effect.retention or "", "retention", *pair, under=under, over=over, study=effect.study or "")


def _contrast(text: str, recipe: Recipe) -> Wanted:
    arms = sides(text, recipe.arms)
    if arms:
        return Wanted(text, "arms", *arms)
    labels = [method.label for method in recipe.methods]
    known: set[str] = set()
    for left, right in cuts(text):
        both = [matching(side, labels) for side in (left, right)]
        if all(len(found) == 1 for found in both) and both[0] != both[1]:
            return Wanted(text, "methods", both[0][0], both[1][0], arms=tuple(recipe.arms))
        if all(both):
            known |= {f"'{side}' is any of {', '.join(found)}" for side, found in zip((left, right), both, strict=True)
                      if len(found) > 1}  # fmt: skip
    if known:
        raise UserError(f"effects: '{text}': {'; '.join(sorted(known))}; write more of a method's words")
    raise _no_contrast(text, recipe, labels)


def _no_contrast(text: str, recipe: Recipe, labels: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(text, _possible(recipe.arms, labels), n=1, cutoff=0.6)
    hint = f": did you mean '{near[0]}'?" if near else ""
    of_methods = f", or two of the methods {', '.join(labels)}" if len(labels) > 1 else ""
    of_arms = f"two of the arms {', '.join(recipe.arms)}; write a-b"
    return UserError(f"effects: '{text}' is no contrast of {of_arms}{of_methods}{hint}")


def _possible(arms: Iterable[str], labels: Sequence[str]) -> list[str]:
    """Contrasts that could have been meant, the methods by a word that is theirs alone, or whole."""
    words = [short_label(label, labels) for label in labels]
    return [f"{left}-{right}" for names in (list(arms), words) for left in names for right in names if left != right]


def _arms(text: str, recipe: Recipe) -> tuple[str, str]:
    found = sides(text, recipe.arms)
    if not found:
        raise _no_contrast(text, recipe, [])
    return found


def _method(text: str, labels: Sequence[str], key: str) -> str:
    found = matching(text, labels)
    if len(found) > 1:
        raise UserError(f"effects: {key}: '{text}' is any of {', '.join(found)}; write more of a method's words")
    if not found:
        raise unknown(f"method in effects ({key})", text, labels)
    return found[0]


def matching(text: str, labels: Iterable[str]) -> list[str]:
    """The labels that hold all words of `text`: `4-bit` and `lora` are in `lora r16 4-bit`. A whole label is itself."""
    labels = list(dict.fromkeys(labels))
    if text in labels:
        return [text]
    words = set(text.split())
    return [label for label in labels if words and words <= set(label.split())]


def short_label(label: str, labels: Iterable[str]) -> str:
    """The first word of a method's label that no other has, or all of it: `lora` beside `full 32-bit`."""
    others = list(dict.fromkeys(labels))
    return next((word for word in label.split() if len(matching(word, others)) == 1), label)


def still_possible(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe without the effects that need arms which were taken out of it, and what those are called."""
    kept: list[str | EffectPart] = []
    dropped = []
    for effect in recipe.effects:
        cut = effect
        if isinstance(effect, EffectPart) and effect.arms:
            cut = effect.model_copy(update={"arms": [arm for arm in effect.arms if arm in recipe.arms]})
        if _can_be_asked(cut, effect, recipe):
            kept.append(cut)
        else:
            dropped.append(_called(effect))
    return recipe.model_copy(update={"effects": kept}), dropped


def _can_be_asked(cut: str | EffectPart, effect: str | EffectPart, recipe: Recipe) -> bool:
    if isinstance(cut, EffectPart) and isinstance(effect, EffectPart) and effect.arms and not cut.arms:
        return False  # no arms would mean all of them
    try:
        _wanted(cut, recipe)
    except UserError:
        return False
    return True


def _called(effect: str | EffectPart) -> str:
    if isinstance(effect, str):
        return effect
    if effect.contrast:
        return effect.contrast
    return f"scale of {effect.scale}" if effect.scale else f"retention of {effect.retention} under {effect.under}"
