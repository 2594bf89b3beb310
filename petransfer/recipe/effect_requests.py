"""Convert the effects of a recipe to `RequestedEffect` objects.

A recipe writes an effect as `english-scratch` (two arms), as `lora-full` (two methods) or as a mapping. A contrast is
the difference between two arms or two methods. `scale` compares a contrast with the contrast of a smaller family.
`retention` is the share of a contrast that remains under another method.
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from petransfer.errors import UserError, unknown
from petransfer.recipe.metrics import EXACT_MATCH
from petransfer.recipe.schema import EffectPart, Recipe


@dataclass(frozen=True)
class RequestedEffect:
    """An effect of a recipe, with complete names of arms and methods.

    Attributes:
        name: The effect's text in the recipe, with its categories.
        kind: `arms` or `methods` for a contrast, `scale`, `retention`, or a kind of another package.
        left, right: Two arms, or the labels of two methods.
        arms: The arms in which two methods are compared.
        under, over: Labels of the two methods of a retention: the effect under the method `under`, divided by the
            effect under the method `over`. With `study`, `over` is a label in that study.
        study: Name of another study that the effect needs. Empty: none.
        options: Options of a kind of another package.
        categories: A group of categories, or one category. Only their test examples count. Empty: all test examples.
        paired: Whether two methods are compared seed by seed. If False, their seeds are two independent groups.
        family: Name of the group of effects whose p values are adjusted together. Empty: the study's main group.
    """

    name: str
    kind: str
    left: str
    right: str
    arms: tuple[str, ...] = ()
    under: str = ""
    over: str = ""
    study: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    categories: str = ""
    paired: bool = True
    family: str = ""


def requested_effects(recipe: Recipe) -> list[RequestedEffect]:
    """Return the effects of a recipe.

    Raises:
        UserError: An effect names an arm or a method that is not in the recipe, a name matches several methods, or an
            effect is given twice.
    """
    found: list[RequestedEffect] = []
    for effect in recipe.effects:
        family = effect.family if isinstance(effect, EffectPart) else ""
        found.append(replace(_requested(effect, recipe), family=family))
        # a second test of the same effect would raise the p values of all effects (Holm)
        if any(_same(found[-1], other) for other in found[:-1]):
            raise UserError(f"effects: '{_name_of(effect)}' is given twice; keep one")
    return found


def _same(one: RequestedEffect, other: RequestedEffect) -> bool:
    """Return whether two effects differ at most in how the recipe writes them."""
    return replace(one, name="") == replace(other, name="")


def refuse_effects_of_other_arms(recipe: Recipe, family_arms: Iterable[str]) -> None:
    """Raise UserError if an effect compares an arm of the family that the recipe does not train.

    Args:
        family_arms: All arms of the recipe's family, also the control arms.
    """
    known = {*recipe.arms, *family_arms}
    for effect in recipe.effects:
        text = effect if isinstance(effect, str) else _text_of(effect)
        sides = None if _arms_of(text, recipe.arms) else _arms_of(text, known)
        missing = [arm for arm in sides or () if arm not in recipe.arms]
        if missing:
            names = " and ".join(missing)
            raise UserError(
                f"effects: '{text}' needs {names}, and `arms` has only {', '.join(recipe.arms)}; add {names} to "
                "`arms`, or remove the effect"
            )


def _text_of(effect: EffectPart) -> str:
    return effect.contrast or effect.scale or effect.retention or effect.of or ""


def _requested(effect: str | EffectPart, recipe: Recipe) -> RequestedEffect:
    if isinstance(effect, str):
        return _contrast(effect, recipe)
    if effect.contrast:
        found = _contrast(effect.contrast, recipe)
        for key, given in (("arms", bool(effect.arms)), ("paired", not effect.paired)):
            if given and found.kind != "methods":
                raise UserError(f"effects: '{effect.contrast}' compares arms; `{key}` belongs to a contrast of methods")
        if effect.categories and recipe.judged_by != EXACT_MATCH:
            raise UserError(
                f"effects: '{effect.contrast}': `categories` needs exact match, and the effects are computed on "
                f"{recipe.judged_by}; remove `categories`, or add `judge_by: {EXACT_MATCH}` to the recipe"
            )
        for arm in effect.arms:
            if arm not in recipe.arms:
                raise unknown(f"arm in the effect '{effect.contrast}'", arm, recipe.arms)
        return replace(
            found,
            name=_name_of(effect),
            arms=tuple(effect.arms) or found.arms,
            categories=effect.categories,
            paired=effect.paired,
        )
    pair = _arms(_text_of(effect), recipe)
    if effect.kind:
        _refuse_built_in(effect.kind, effect.of or "")
        return RequestedEffect(effect.of or "", effect.kind, *pair, study=effect.study or "", options=effect.options)
    if effect.scale:
        return RequestedEffect(effect.scale, "scale", *pair, study=effect.study or "")
    labels = [method.label for method in recipe.methods]
    under = _method(effect.under or "", labels, "under")
    over = effect.over or "full"
    if not effect.study:
        over = _method(over, labels, "over")
        if over == under:
            raise UserError(f"effects: the retention of '{effect.retention}' has one method as under and over: {under}")
    return RequestedEffect(effect.retention or "", "retention", *pair, under=under, over=over, study=effect.study or "")


# How a recipe writes the built-in kinds of effects, by the names that a user could give as `kind`.
_BUILT_IN = {
    "contrast": "contrast: {of}",
    "arms": "contrast: {of}",
    "methods": "contrast: {of}",
    "scale": "scale: {of}, study: small-family",
    "retention": "retention: {of}, under: lora",
}


def _refuse_built_in(kind: str, of: str) -> None:
    """Raise UserError if `kind` is a built-in kind, whose settings `kind` cannot express."""
    if kind in _BUILT_IN:
        form = f"{{{_BUILT_IN[kind].format(of=of)}}}"
        raise UserError(f"effects: `kind: {kind}` is for kinds of other packages; write, for example, {form}")


def _contrast(text: str, recipe: Recipe) -> RequestedEffect:
    arms = _arms_of(text, recipe.arms)
    if arms:
        return RequestedEffect(text, "arms", *arms)
    labels = [method.label for method in recipe.methods]
    known: set[str] = set()
    for left, right in _sides_of_dashes(text):
        both = [labels_matching(side, labels) for side in (left, right)]
        if all(len(found) == 1 for found in both) and both[0] != both[1]:
            return RequestedEffect(text, "methods", both[0][0], both[1][0], arms=tuple(recipe.arms))
        if all(both):
            sides_and_labels = zip((left, right), both, strict=True)
            known |= {
                f"'{side}' could be any of {', '.join(found)}" for side, found in sides_and_labels if len(found) > 1
            }
    if known:
        raise UserError(f"effects: '{text}': {'; '.join(sorted(known))}; add words of the method's label")
    raise _no_contrast(text, recipe, labels)


def _no_contrast(text: str, recipe: Recipe, labels: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(text, _possible(recipe.arms, labels), n=1, cutoff=0.6)
    hint = f": did you mean '{near[0]}'?" if near else ""
    of_methods = f", or two of the methods {', '.join(labels)}" if len(labels) > 1 else ""
    if len(recipe.arms) < 2 and len(labels) < 2:
        return UserError(
            f"effects: '{text}' is no contrast, because the recipe has only the arm {recipe.arms[0]} and one method; "
            "add an arm to `arms`, or remove the effect"
        )
    of_arms = f"two of the arms {', '.join(recipe.arms)}"
    return UserError(
        f"effects: '{text}' is not a contrast of {of_arms}{of_methods}{hint or '; write two names with a dash between'}"
    )


def _possible(arms: Iterable[str], labels: Sequence[str]) -> list[str]:
    """Return all contrasts that are possible with these arms and methods."""
    words = [short_label(label, labels) for label in labels]
    return [f"{left}-{right}" for names in (list(arms), words) for left in names for right in names if left != right]


def _arms(text: str, recipe: Recipe) -> tuple[str, str]:
    found = _arms_of(text, recipe.arms)
    if not found:
        raise _no_contrast(text, recipe, [])
    return found


def _method(text: str, labels: Sequence[str], key: str) -> str:
    found = labels_matching(text, labels)
    if len(found) > 1:
        raise UserError(f"effects: {key}: '{text}' could be any of {', '.join(found)}; add words of the method's label")
    if not found:
        raise unknown(f"method in effects ({key})", text, labels)
    return found[0]


def labels_matching(text: str, labels: Iterable[str]) -> list[str]:
    """Return the labels that contain every word of `text`, such as `lora r16 4-bit` for `lora 4-bit`.

    If `text` is a complete label, the result is only this label.
    """
    labels = list(dict.fromkeys(labels))
    if text in labels:
        return [text]
    words = set(text.split())
    return [label for label in labels if words and words <= set(label.split())]


def short_label(label: str, labels: Iterable[str]) -> str:
    """Return the label's first word that occurs in no other label. Default: the complete label."""
    others = list(dict.fromkeys(labels))
    return next((word for word in label.split() if len(labels_matching(word, others)) == 1), label)


def without_impossible_effects(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return the recipe without the effects that need arms outside the recipe, and the names of these effects.

    In a contrast of methods, arms that are not in the recipe are removed from `arms`.
    """
    kept: list[str | EffectPart] = []
    dropped = []
    for effect in recipe.effects:
        cut = effect
        if isinstance(effect, EffectPart) and effect.arms:
            cut = effect.model_copy(update={"arms": [arm for arm in effect.arms if arm in recipe.arms]})
        if _is_possible(cut, effect, recipe):
            # two effects can become equal when arms are removed
            kept += [] if cut in kept else [cut]
        else:
            dropped.append(_name_of(effect))
    return recipe.model_copy(update={"effects": kept}), dropped


def _is_possible(cut: str | EffectPart, effect: str | EffectPart, recipe: Recipe) -> bool:
    if isinstance(cut, EffectPart) and isinstance(effect, EffectPart) and effect.arms and not cut.arms:
        return False  # an empty list of arms would mean all arms
    try:
        _requested(cut, recipe)
    except UserError:
        return False
    return True


def _name_of(effect: str | EffectPart) -> str:
    if isinstance(effect, str):
        return effect
    if effect.contrast:
        return f"{effect.contrast} ({effect.categories})" if effect.categories else effect.contrast
    if effect.kind:
        return f"{effect.kind} of {effect.of}"
    return f"scale of {effect.scale}" if effect.scale else f"retention of {effect.retention} under {effect.under}"


def _arms_of(effect: str, arms: Container[str]) -> tuple[str, str] | None:
    """Return the two arms of a contrast such as `english-scratch`. None: no contrast of `arms`."""
    return next(
        (cut for cut in _sides_of_dashes(effect) if cut[0] != cut[1] and cut[0] in arms and cut[1] in arms), None
    )


def _sides_of_dashes(text: str) -> list[tuple[str, str]]:
    """Return the text before and after each dash of a text, because names can contain dashes."""
    return [(text[:at].strip(), text[at + 1 :].strip()) for at, sign in enumerate(text) if sign == "-"]
