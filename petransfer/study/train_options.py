"""Validate the recipe of `petransfer train`, and name the options of the command in the error messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petransfer.errors import UserError, shortened
from petransfer.recipe.loading import InvalidRecipe, Mistake, overridden_key, validate
from petransfer.recipe.schema import Recipe

# The options of `train` that set a value of the recipe, by the place of the value.
_OPTIONS = {
    "methods.0": "--method",
    "methods.0.rank": "--rank",
    "methods.0.bits": "--bits",
    "seeds": "--seeds",
    "task.metrics": "--metric",
    "task.prefix": "--prefix",
    "task.options.input": "--input-column",
    "task.options.target": "--target-column",
    "train.epochs": "--epochs",
    "train.batch_size": "--batch-size",
    "train.learning_rate": "--learning-rate",
    "train.early_stopping.patience": "--early-stopping",
    "train.early_stopping.max_minutes": "--max-minutes",
    "train.packing": "--packing",
}
# The same for the options of the task `lines`, and for the settings of the model.
_ENDINGS = {
    "added_tokens": "--add-tokens",
    "source_language": "--source-language",
    "target_language": "--target-language",
}
_DATA = ("dev", "test", "template", "max_length", "quoting")


def recipe_of_options(content: dict[str, Any], overrides: Sequence[str], steps_option: str) -> Recipe:
    """Validate the recipe of `petransfer train`.

    Args:
        content: The recipe, with the overrides.
        overrides: The values of `--set`.
        steps_option: The option that sets the number of steps: `--steps` or `--max-steps`.

    Raises:
        UserError: The recipe is not valid. The message names the option with the wrong value.
    """
    try:
        return validate(content, "the recipe of petransfer train")
    except InvalidRecipe as error:
        mistake = error.mistake
        name = _overrides_of(mistake.place, overrides) or _option(mistake, content, steps_option)
        advice = "" if name else f"; change it with --set {mistake.place}=VALUE"
        raise UserError(f"{name or mistake.place}: {mistake.problem}{advice}") from None


def _overrides_of(place: str, overrides: Sequence[str]) -> str:
    """Return the overrides that set a place in the recipe or a part of it, as options. Empty if there are none."""
    keys = place.split(".") if place else []
    found = []
    for override in overrides:
        key = overridden_key(override)
        common = min(len(key), len(keys))
        if key[:common] == keys[:common]:
            found.append(f"--set {shortened(override, 80)}")
    return " ".join(found)


def _option(mistake: Mistake, content: dict[str, Any], steps_option: str) -> str:
    """Return the option that sets a place in the recipe, with the wrong value. Empty if there is no such option."""
    *_, last = mistake.place.split(".")
    if mistake.place == "train.steps":
        option = steps_option
    elif mistake.place.startswith("task.options.") and last in _DATA:
        option = f"--{last.replace('_', '-')}"
    else:
        option = _OPTIONS.get(mistake.place) or _ENDINGS.get(last, "")
    value = content["methods"][0]["name"] if mistake.place == "methods.0" else mistake.value
    if not option or isinstance(value, bool) or not isinstance(value, str | int | float):
        return option
    return f"{option} {value:g}" if isinstance(value, float) else f"{option} {shortened(str(value), 80)}"
