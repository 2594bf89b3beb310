"""Describe the settings in which two recipes differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from petransfer.errors import shortened
from petransfer.recipe.schema import Recipe


def setting_changes(old: Recipe, new: Recipe, keys: Collection[str]) -> list[str]:
    """Return one phrase for each setting that two recipes set differently, such as `train.steps=5 (you asked for 9)`.

    keys: The keys at the top level of a recipe that are compared.
    """
    before, after = (one.model_dump(mode="json", include=set(keys)) for one in (old, new))
    if len(old.methods) != len(new.methods) and "methods" in keys:
        before["methods"], after["methods"] = ([part.label for part in one.methods] for one in (old, new))
    only_method = "methods.0." if len(new.methods) == 1 else ""
    return [
        f"other rows of {_data_files(new)}"
        if key == "task.options.sha256"  # the hash of the rows
        else _difference(key.removeprefix(only_method), was, asked)
        for key, was, asked in differing_values(before, after)
    ]


def _data_files(recipe: Recipe) -> str:
    """Return the names of the user's files with train, dev and test rows."""
    given = (recipe.task.options.get(part) for part in ("train", "dev", "test"))
    return " or ".join(dict.fromkeys(Path(one).name for one in given if isinstance(one, str)))


def differing_values(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each key with different values, the old value and the new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differing_values(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differing_values(one, other, f"{place}.{at}")
    elif old != new:
        yield place, old, new


def _difference(key: str, old: Any, new: Any) -> str:
    had = f"no {key}" if old is None else f"{key}={short_value(old)}"
    return f"{had} (you asked for {'none' if new is None else short_value(new)})"


def short_value(value: Any) -> str:
    """Return a value as text of at most 60 characters."""
    return shortened(str(value), 60)
