"""The key `effects` of a recipe: valid entries, and the messages about invalid entries."""

from __future__ import annotations

from typing import Any

import pytest

from petransfer.effects.kind import KINDS
from petransfer.errors import UserError
from petransfer.recipe.effect_requests import (
    RequestedEffect,
    labels_matching,
    requested_effects,
    short_label,
    without_impossible_effects,
)
from petransfer.recipe.loading import recipe_yaml, validate
from petransfer.recipe.schema import Recipe
from petransfer.study.grid import expand

LORA16, LORA4, FULL = "lora r16 16-bit", "lora r16 4-bit", "full 32-bit"


def recipe(*effects: Any, arms: tuple[str, ...] = ("english", "english-newemb", "scratch")) -> Recipe:
    content = {
        "name": "x",
        "task": {"name": "scan", "splits": ["add_jump"]},
        "arms": list(arms),
        "methods": [{"name": "lora"}, {"name": "lora", "bits": 4}, {"name": "full", "bits": 32}],
        "train": {"steps": 5, "learning_rate": 0.1},
        "effects": list(effects),
    }
    return validate(content, "here.yaml")


@pytest.mark.parametrize(
    ("effect", "kind", "left", "right"),
    [
        ("english-scratch", "arms", "english", "scratch"),
        ("english-newemb-scratch", "arms", "english-newemb", "scratch"),
        ("4-bit-16-bit", "methods", LORA4, LORA16),
        ("4-bit - full", "methods", LORA4, FULL),
        ("lora 16-bit - full", "methods", LORA16, FULL),
        (f"{LORA4} - {LORA16}", "methods", LORA4, LORA16),
        ({"contrast": "4-bit-full"}, "methods", LORA4, FULL),
    ],
)
def test_a_contrast_compares_arms_or_methods(effect: Any, kind: str, left: str, right: str) -> None:
    (found,) = requested_effects(recipe(effect))
    assert (found.kind, found.left, found.right) == (kind, left, right)
    assert found.arms == (("english", "english-newemb", "scratch") if kind == "methods" else ())


def test_effects_with_more_than_two_names_are_mappings() -> None:
    found = requested_effects(
        recipe(
            {"contrast": "4-bit-full", "arms": ["english"]},
            {"retention": "english-scratch", "under": "4-bit"},
            {"retention": "english-scratch", "under": "4-bit", "over": "16-bit"},
            {"retention": "english-scratch", "under": "4-bit", "study": "full-scan"},
            {"scale": "english-scratch", "study": "../base"},
        )
    )
    assert found[0].arms == ("english",)
    assert found[1] == RequestedEffect("english-scratch", "retention", "english", "scratch", under=LORA4, over=FULL)
    assert found[2].over == LORA16
    assert (found[3].over, found[3].study) == ("full", "full-scan")
    assert (found[4].kind, found[4].study) == ("scale", "../base")


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        ("english-scrach", "did you mean 'english-scratch'"),
        ("4-bit-ful", "did you mean '4-bit-full'"),
        ("lora-full", f"'lora' could be any of {LORA16}, {LORA4}; add words"),
        ("full-full", "is not a contrast"),
        ({"contrst": "4-bit-full"}, "unknown key 'effects.0.contrst': did you mean 'contrast'"),
        ({"contrast": "4-bit-full", "arms": ["englsh"]}, "'englsh': did you mean 'english'"),
        ({"contrast": "english-scratch", "arms": ["english"]}, "belongs to a contrast of methods"),
        ({"contrast": "english-scratch", "paired": False}, "`paired` belongs to a contrast of methods"),
        ({"retention": "english-scratch", "under": "4-bit", "paired": False}, "an effect with retention has no paired"),
        ({"retention": "english-scratch", "under": "4-bit", "categories": "and"}, "has no categories; its keys are"),
        ({"retention": "english-scratch"}, "retention needs under"),
        ({"retention": "english-scratch", "under": "lora"}, "'lora' could be any of"),
        ({"retention": "english-scratch", "under": "4-bits"}, "unknown method in effects (under) '4-bits'"),
        ({"retention": "english-scratch", "under": "full"}, "one method as under and over"),
        ({"retention": "english-scrtch", "under": "4-bit"}, "did you mean 'english-scratch'"),
        ({"scale": "english-scratch"}, "scale needs study"),
        ({"scale": "english-scratch", "study": "x", "under": "4-bit"}, "has no under; its keys are study"),
        ({"kind": "scale", "of": "english-scratch"}, "write, for example, {scale: english-scratch, study: "),
        ({"kind": "arms", "of": "english-scratch"}, "write, for example, {contrast: english-scratch}"),
        ({"scale": "a-b", "retention": "a-b"}, "give exactly one of"),
        ({}, "give exactly one of"),
        (5, "effects.0"),
    ],
)
def test_invalid_effects_are_refused_with_the_reason(effect: Any, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        requested_effects(recipe(effect))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("english-scratch", "english-scratch"),
        ("english-scratch", {"contrast": "english - scratch"}),
        ("4-bit-full", f"{LORA4}-{FULL}"),
        ({"scale": "english-scratch", "study": "x"}, {"scale": "english-scratch", "study": "x"}),
    ],
)
def test_an_effect_that_is_given_twice_is_refused(one: Any, other: Any) -> None:
    with pytest.raises(UserError, match=r"effects: '.*' is given twice; keep one"):
        requested_effects(recipe(one, other))


def test_effects_with_other_settings_are_not_the_same() -> None:
    one = "4-bit-full"
    different = [one, {"contrast": one, "paired": False}, {"contrast": one, "arms": ["english"]},
                 {"contrast": one, "categories": "and"}, {"contrast": one, "family": "b"}]  # fmt: skip
    assert len(requested_effects(recipe(*different))) == 5


def test_every_built_in_kind_of_effect_is_refused_as_a_kind_of_another_package() -> None:
    for kind in KINDS.of_package():
        for name in (kind.name, *kind.requests):
            with pytest.raises(UserError, match=f"`kind: {name}` is for kinds of other packages"):
                requested_effects(recipe({"kind": name, "of": "english-scratch"}))


@pytest.mark.parametrize(("contrast", "kind"), [("english-scratch", "arms"), ("4-bit-full", "methods")])
def test_a_contrast_can_be_limited_to_categories(contrast: str, kind: str) -> None:
    (found,) = requested_effects(recipe({"contrast": contrast, "categories": "and"}))
    assert (found.name, found.kind, found.categories) == (f"{contrast} (and)", kind, "and")


def test_a_contrast_of_categories_needs_exact_match() -> None:
    made = recipe({"contrast": "english-scratch", "categories": "and"})
    task = made.task.model_copy(update={"metrics": ["bleu"]})
    with pytest.raises(UserError, match=r"`categories` needs exact match, and the effects are computed on bleu"):
        requested_effects(made.model_copy(update={"task": task}))


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ("lexical", ""),
        ("cp_recursion", ""),
        ("lexcal", "did you mean 'lexical'"),
        ("cp_recursio", "did you mean 'cp_recursion'"),
        ("and", "unknown group of categories, or category, of cogs 'and'"),
    ],
)
def test_categories_must_exist_in_the_task(categories: str, message: str) -> None:
    made = recipe({"contrast": "english-scratch", "categories": categories})
    made = made.model_copy(update={"task": made.task.model_copy(update={"name": "cogs", "splits": ["gen"]})})
    if not message:
        assert expand(made)
        return
    with pytest.raises(UserError) as refusal:
        expand(made)
    assert message in str(refusal.value)


def test_methods_are_found_by_some_words_of_their_labels() -> None:
    labels = [LORA16, LORA4, FULL]
    assert labels_matching("4-bit", labels) == [LORA4]
    assert labels_matching("lora", labels) == [LORA16, LORA4]
    assert labels_matching("", labels) == labels_matching("int8", labels) == []
    assert labels_matching("full 32-bit", [FULL, "full 32-bit more"]) == [FULL]


def test_effects_of_missing_arms_are_removed() -> None:
    full = recipe("english-scratch", "4-bit-16-bit", {"contrast": "4-bit-full", "arms": ["english", "scratch"]})
    cut, dropped = without_impossible_effects(full.model_copy(update={"arms": ["english"]}))
    assert dropped == ["english-scratch"]
    assert [effect.arms for effect in requested_effects(cut)] == [("english",), ("english",)]
    more = recipe(
        {"scale": "english-scratch", "study": "small"}, {"retention": "english-scratch", "under": "4-bit"},
        {"contrast": "4-bit-full", "arms": ["scratch"]},
    )  # fmt: skip
    cut, dropped = without_impossible_effects(more.model_copy(update={"arms": ["english"]}))
    assert (cut.effects, dropped) == (
        [], ["scale of english-scratch", "retention of english-scratch under 4-bit", "4-bit-full"]
    )  # fmt: skip


def test_effects_that_become_equal_without_the_removed_arms_are_kept_once() -> None:
    more = recipe(*({"contrast": "4-bit-full", "arms": ["english", arm]} for arm in ("english-newemb", "scratch")))
    cut, dropped = without_impossible_effects(more.model_copy(update={"arms": ["english"]}))
    assert (len(requested_effects(cut)), dropped) == (1, [])


def test_a_recipe_that_is_written_and_read_again_requests_the_same_effects() -> None:
    import yaml

    one = recipe("english-scratch", {"retention": "english-scratch", "under": "4-bit"})
    assert requested_effects(validate(yaml.safe_load(recipe_yaml(one)), "again")) == requested_effects(one)


def test_the_short_label_of_a_method_is_its_first_unique_word() -> None:
    labels = ["lora r16 32-bit", "lora r16 4-bit", "full 32-bit"]
    assert [short_label(label, labels) for label in labels] == ["lora r16 32-bit", "4-bit", "full"]
