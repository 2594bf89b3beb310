"""Choose the folder of a training: that of an earlier training with the same settings, or a new one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petransfer.errors import UserError, shortened
from petransfer.recipe.loading import load_recipe
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.quick_recipe import with_absolute_paths

_COMPARED = ("name", "task", "family", "arms", "methods", "train", "data_dir")


def choose_folder(recipe: Recipe, out: Path | None) -> tuple[Path, str]:
    """Return the folder for a training, and a sentence that explains the choice.

    The usual folder is `out`, or `results/NAME` if `out` is None. It is used if it has no finished, interrupted or
    running runs, or if these runs belong to the same recipe with the same or fewer seeds. The sentence is then empty.
    Otherwise, if `out` is None, the first of `results/NAME-2`, `results/NAME-3`, ... that can be used in this way is
    returned.

    Raises:
        UserError: `out` holds runs of a recipe with other settings.
    """
    usual = out or Path("results") / recipe.name
    difference = differences(usual, recipe)
    if not difference:
        return usual, ""
    taken = f"{usual} holds a training with {'; '.join(difference[:3])}"
    if out is not None:
        raise UserError(f"{taken}; use --out for a new folder")
    numbered = (usual.with_name(f"{usual.name}-{number}") for number in itertools.count(2))
    chosen = next(folder for folder in numbered if not differences(folder, recipe))
    return chosen, f"{taken}; this training goes to {chosen}"


def differences(folder: Path, recipe: Recipe) -> list[str]:
    """Return how a folder's recipe differs from `recipe`, one phrase per key; empty if the folder may be used.

    Raises:
        UserError: The folder's recipe cannot be read.
    """
    study, kept = StudyFolder(folder), folder / "recipe.yaml"
    if not kept.is_file() or not any(study.run(name).status() in _WORTH_KEEPING for name in study.names()):
        return []
    other = with_absolute_paths(load_recipe(str(kept)))
    theirs, ours = (one.model_dump(mode="json", include=set(_COMPARED)) for one in (other, recipe))
    found = [f"{key}={_short(old)} (you asked for {_short(new)})" for key, old, new in _unlike(theirs, ours)]
    if not set(other.seeds) <= set(recipe.seeds):
        found.append(f"seeds={_short(other.seeds)} (you asked for {_short(recipe.seeds)})")
    return found


_WORTH_KEEPING = ("done", "interrupted", "running")


def _unlike(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each key at which two nested values differ, with the old and the new value.

    Args:
        place: The key of the two nested values themselves; empty at the top level.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _unlike(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _unlike(one, other, f"{place}.{at}")
    elif old != new:
        yield place, old, new


def _short(value: Any) -> str:
    return shortened("not set" if value is None else str(value), 60)
