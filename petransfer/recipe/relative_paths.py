"""Relative paths in a recipe: looked for in the current folder first, then in the recipe's own folder."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petransfer.user_paths import expanded

_PARTS = ("train", "dev", "test")


def with_absolute_paths(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe's plain values in which relative paths that exist only below `folder` are absolute.

    Args:
        content: a recipe's values, which may not be valid.
        folder: the folder of the recipe's file.
    """
    data_dir = _beside(content.get("data_dir"), [Path()], folder)
    found = dict(content) | ({} if data_dir is None else {"data_dir": data_dir})
    task, family = content.get("task"), content.get("family")
    if isinstance(task, Mapping) and isinstance(task.get("options"), Mapping):
        places = [Path(), *([expanded(data_dir)] if isinstance(data_dir, str | Path) else [])]
        given = {part: task["options"][part] for part in _PARTS if part in task["options"]}
        placed = {part: _beside(value, places, folder) for part, value in given.items()}
        found["task"] = {**task, "options": {**task["options"], **placed}}
    if isinstance(family, Mapping) and isinstance(family.get("arms"), Mapping):
        arms = {arm: _of_arm(entry, folder) for arm, entry in family["arms"].items()}
        found["family"] = {**family, "arms": arms}
    return found


def _of_arm(entry: Any, folder: Path) -> Any:
    if isinstance(entry, Mapping):
        places = {key: _beside(entry[key], [Path()], folder) for key in ("checkpoint", "tokenizer") if key in entry}
        return {**entry, **places}
    return _beside(entry, [Path()], folder)


def _beside(value: Any, places: list[Path], folder: Path) -> Any:
    """Return `value`, or its path below `folder` if it is a relative path that exists only there."""
    if not isinstance(value, str) or not value or value.startswith(("/", "~", "nano/")):
        return value
    try:
        if any(_is_there(place / value) for place in places) or not _is_there(folder / value):
            return value
    except (OSError, ValueError):  # no path: too long, or with a zero byte
        return value
    return str((folder / value).resolve())


def _is_there(path: Path) -> bool:
    """Return whether a path exists. `{seed}` in the name of a checkpoint stands for any seed."""
    return path.exists() or ("{seed}" in str(path) and bool(glob.glob(glob.escape(str(path)).replace("{seed}", "*"))))
