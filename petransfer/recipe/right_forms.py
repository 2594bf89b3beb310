"""Describe the correct form of a wrong value in a recipe, in the terms of YAML instead of Python, with an example."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

# The right form of each key that takes a list or a mapping, by the key's place in a recipe.
FORMS = {
    "task": "task: {name: lines, options: {train: data.csv}}",
    "task.splits": "splits: [add_jump, length]",
    "task.options": "options: {train: data.csv}",
    "task.metrics": "metrics: [rouge]",
    "family": "family: {name: mine, arms: {english: google-t5/t5-base}}",
    "family.arms": "arms: {english: google-t5/t5-base}",
    "arms": "arms: [english, scratch]",
    "methods": "methods: [{name: lora}]",
    "methods.layers": "layers: [0, 1]",
    "methods.keep_wide": "keep_wide: [wo]",
    "methods.targets": "targets: [q, v]",
    "seeds": "seeds: [0, 1, 2]",
    "more_seeds": "more_seeds: {scratch: [3, 4, 5]}",
    "train": "train: {steps: 2000, learning_rate: 1.0e-3}",
    "train.early_stopping": "early_stopping: {patience: 5}",
    "effects": "effects: [english-scratch]",
    "effects.arms": "arms: [english]",
    "effects.options": "options: {name: value}",
}
_MAPPING = {"model_type", "model_attributes_type", "dict_type", "dict_attributes_type", "dataclass_type"}
_LIST = {"list_type", "tuple_type", "set_type"}
_WHOLE = {"int_type", "int_parsing", "int_from_float", "int_parsing_size"}
_REAL = {"float_type", "float_parsing"}
_YES_NO = {"bool_type", "bool_parsing"}
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([, '_]\d{3})+(\.\d+)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def correct_form(place: Sequence[str], mistake: Mapping[str, Any]) -> str:
    """Return the correct form of the value at `place`, with an example. Empty if pydantic's own message is sufficient.

    Args:
        place: Keys and indices of the wrong value, from the outermost to the innermost.
        mistake: The error as pydantic reports it.
    """
    kind, given = mistake["type"], mistake.get("input")
    keys = [key for key in place if not key.isdigit()]
    key, form = keys[-1] if keys else "recipe", FORMS.get(".".join(keys))
    if kind == "missing":
        example = FORMS.get(".".join(keys[:-1])) or form
        return f"this key is missing; {f'write, for example, {example}' if example else 'add it'}"
    if kind in _MAPPING | _LIST:
        what = "a list in brackets" if kind in _LIST else "a mapping of keys to values"
        return f"give {what}, such as {form or _form(key, given, kind in _LIST)}"
    number = _number_form(key, given, kind)
    if form and place[-1].isdigit() and (number or kind == "string_type"):  # an item of a list
        return f"give {'a whole number' if number else 'a text'}, as in {form}"
    if number:
        return number
    if kind in _YES_NO:
        return f"give true or false, such as {key}: true"
    if kind == "string_pattern_mismatch":  # only names of folders have a pattern
        return (
            "this is also the name of a folder; write only the letters A to Z and a to z, digits, '.', '_' and '-', "
            "and begin with a letter or a digit"
        )
    if kind == "string_too_long":
        return f"give a text of at most {mistake['ctx']['max_length']:,} characters"
    if kind == "string_type":
        # Python refuses to print numbers of thousands of digits
        is_plain = isinstance(given, int | float) and not isinstance(given, bool) and abs(given) < 1e18
        return f"give a text in quotes: {key}: '{given}'" if is_plain else f"give one text, such as {key}: '...'"
    return ""


def type_of_yaml(given: Any) -> str:
    """Explain that YAML reads an unquoted text as another type, and show the correct form. '' if `given` is a text."""
    if isinstance(given, bool):
        texts, example = ("yes, on and true", "yes") if given else ("no, off and false", "no")
        return f"YAML reads {texts} without quotes as {str(given).lower()}; put a text in quotes, such as '{example}'"
    if isinstance(given, datetime.date):
        return f"YAML reads {given} as a date; put it in quotes: '{given}'"
    if isinstance(given, int | float) and abs(given) < 1e18:  # Python refuses to print numbers of thousands of digits
        return f"YAML reads {given} as a number; put it in quotes: '{given}'"
    return "YAML reads null, ~ and nothing as no value; put a text in quotes: 'null'" if given is None else ""


def _form(key: str, given: Any, is_list: bool) -> str:
    """Return an example of a list or a mapping for a key that is not in the table of examples."""
    if not is_list:
        return f"{key}: {{name: value}}"
    return f"{key}: [{given}]" if isinstance(given, str) and given.isalnum() else f"{key}: [first, second]"


def _number_form(key: str, given: Any, kind: str) -> str:
    """Return the correct form of a wrong number, such as without quotes or separators. Empty if no number is needed."""
    text = given.strip() if isinstance(given, str) else ""
    is_choice = kind == "literal_error"
    if is_choice and _NUMBER.fullmatch(text):
        return f"give a number without quotes, such as {key}: {text}"
    if kind not in _WHOLE | _REAL:
        return ""
    if _THOUSANDS.fullmatch(text):
        plain = re.sub(r"[, '_]", "", text)
        return f"give a number without separators between the digits: {key}: {plain}"
    if kind in _REAL:
        return f"give a number, such as {key}: 0.1"
    return f"give a whole number, such as {key}: {round(given) if isinstance(given, float) else 1}"
