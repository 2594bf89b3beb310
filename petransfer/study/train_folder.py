"""Choose the folder of a training: an earlier folder with equal settings, or a new folder."""

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
from petransfer.study.recorded_bases import cells_of, changed_bases

_COMPARED = ("name", "task", "family", "arms", "methods", "train", "data_dir")


def choose_folder(recipe: Recipe, out: Path | None) -> tuple[Path, str]:
    """Return the folder of a training, and a sentence if the usual folder is taken.

    The usual folder is `out` or `results/NAME`. A folder with runs of other settings, or of more seeds, is taken. The
    next names are `results/NAME-2`, `results/NAME-3`, ...

    Raises:
        UserError: `out` is taken.
    """
    usual = out or Path("results") / recipe.name
    difference = differences(usual, recipe)
    if not difference:
        return usual, ""
    taken = f"{usual} holds a training run with {'; '.join(difference[:3])}"
    if out is not None:
        raise UserError(f"{taken}; use --out for a new folder")
    numbered = (usual.with_name(f"{usual.name}-{number}") for number in itertools.count(2))
    chosen = next(folder for folder in numbered if not differences(folder, recipe))
    return chosen, f"{taken}; this run uses {chosen}"


def differences(folder: Path, recipe: Recipe) -> list[str]:
    """Return the differences between a folder's recipe and `recipe`, one phrase per key.

    The list is empty for a folder without finished, interrupted or running runs.
    """
    study, kept = StudyFolder(folder), folder / "recipe.yaml"
    if not kept.is_file() or not any(study.run(name).status() in _WORTH_KEEPING for name in study.names()):
        return []
    other = with_absolute_paths(load_recipe(str(kept)))
    theirs, ours = (one.model_dump(mode="json", include=set(_COMPARED)) for one in (other, recipe))
    found = [
        f"other rows of {Path(str(recipe.task.options.get('train'))).name}"
        if key == "task.options.sha256"  # the hash of the rows
        else _difference(key.removeprefix("methods.0."), old, new)
        for key, old, new in differing_values(theirs, ours)
    ]
    if not set(other.seeds) <= set(recipe.seeds):
        found.append(f"seeds={_short(other.seeds)} (you asked for {_short(recipe.seeds)})")
    return found or [
        f"the base {name} before its {files} changed"
        for name, files in changed_bases(cells_of(recipe, study)[1], study).items()
    ]


_WORTH_KEEPING = ("done", "interrupted", "running")


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
    had = f"no {key}" if old is None else f"{key}={_short(old)}"
    return f"{had} (you asked for {'none' if new is None else _short(new)})"


def _short(value: Any) -> str:
    return shortened(str(value), 60)
