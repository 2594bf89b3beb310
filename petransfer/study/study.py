"""The grid of a study: the resolved recipe, the runs and the folder. Imports no torch."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.errors import UserError
from petransfer.memory.advice import OptionNames, recipe_options
from petransfer.recipe.effect_requests import without_impossible_effects
from petransfer.recipe.loading import (
    apply_override,
    load_any_recipe,
    load_with_dropped_effects,
    recipe_of_folder,
    validate,
)
from petransfer.recipe.method_part import method_of
from petransfer.recipe.run_spec import RunSpec
from petransfer.recipe.schema import Recipe
from petransfer.study.deleted_weights import has_no_weights, note_on_weights, run_command, short_note_on_weights
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, refuse_twin_arms, resolve
from petransfer.study.recorded_bases import cells_of, changed_bases
from petransfer.study.replaced_runs import note_on_replaced_runs
from petransfer.study.shard import parse_shard
from petransfer.user_paths import trainings_in

_log = logging.getLogger(__name__)

# The largest number of steps between two lines of a run's metrics.jsonl, and the smallest number of its lines.
LOG_EVERY, LOGGED_POINTS = 50, 20


@dataclass(frozen=True)
class StudyGrid:
    """A resolved recipe with its runs and folder.

    Attributes:
        recipe: The recipe with the values that depend on the user's data (see `resolve`).
        cells: All runs of the grid.
        folder: The study's folder, which need not exist.
        selected: The runs to execute: all runs, or one shard.
        dropped_effects: Effects that are left out because an arm was not selected.
    """

    recipe: Recipe
    cells: list[Cell]
    folder: StudyFolder
    selected: list[Cell]
    dropped_effects: Sequence[str] = ()

    @property
    def waiting(self) -> list[Cell]:
        """The selected runs that are unfinished."""
        folders = ((cell, self.folder.run(cell.run_id)) for cell in self.selected)
        return [cell for cell, folder in folders if not folder.done and not folder.damage()]

    @property
    def damaged(self) -> dict[str, str]:
        """The damaged selected runs: for each run id, which file is damaged."""
        found = {cell.run_id: self.folder.run(cell.run_id).damage() for cell in self.selected}
        return {run_id: damage for run_id, damage in found.items() if damage}

    def repair(self) -> list[str]:
        """Remove the files of damaged runs and return the ids of these runs."""
        damaged = list(self.damaged)
        for run_id in damaged:
            folder = self.folder.run(run_id)
            with folder.claim() as claimed:
                if claimed and folder.damage():  # another process may have repeated the run meanwhile
                    folder.clear()
        return damaged

    @property
    def weights_note(self) -> str:
        """A note on the finished selected runs whose weights were deleted. Empty if there are none."""
        return short_note_on_weights(len(self._without_weights))

    @property
    def weights_advice(self) -> str:
        """The note with the way to get the weights back."""
        return note_on_weights(self.folder.path, self._without_weights)

    @property
    def _without_weights(self) -> list[str]:
        return [cell.run_id for cell in self.selected if has_no_weights(self.folder.run(cell.run_id).path)]

    @property
    def repair_command(self) -> str:
        """The command that repeats the damaged runs."""
        return f"{self.run_command} --repair"

    @property
    def run_command(self) -> str:
        """The command that executes the unfinished runs in this folder."""
        return run_command(self.folder.path)

    @property
    def dropped_line(self) -> str:
        """A sentence about the dropped effects. Empty if there are none."""
        if not self.dropped_effects:
            return ""
        arms = ", ".join(self.recipe.arms)
        return f"effects skipped, because they need other arms than {arms}: {', '.join(self.dropped_effects)}"

    @property
    def replaced_note(self) -> str:
        """A note on finished runs in the folder that other settings or other data replace. Empty if there are none."""
        return note_on_replaced_runs(self.recipe, self.cells, self.folder)

    @property
    def log_every(self) -> int:
        """The number of steps between two lines of metrics.jsonl, chosen for the shortest run."""
        steps = min(cell.spec.train.steps for cell in self.cells)
        return max(1, min(LOG_EVERY, steps // LOGGED_POINTS))

    def options_for(self, spec: RunSpec) -> OptionNames:
        """Return the command-line options that change the memory of a run."""
        return recipe_options([method_of(part) for part in self.recipe.methods], spec)


def grid_of(recipe: Recipe, out: Path | None = None, shard: str | None = None) -> StudyGrid:
    """Return the grid of a resolved recipe.

    Args:
        out: The study's folder. None: `results/<name of the recipe>`.
        shard: One part of the runs, such as `2/8` (part 2 of 8). None: all runs.

    Raises:
        UserError: The recipe contains an unknown name, or `shard` is not valid.
    """
    part = None if shard is None else parse_shard(shard)
    folder = StudyFolder(Path(out or Path("results") / recipe.name))
    recipe, cells = cells_of(recipe, folder)
    for name, files in changed_bases(cells, folder).items():
        _warn_once(
            f"{folder.path} has runs of {name} before its {files} changed; these runs do not count in this study"
        )
    return StudyGrid(recipe, cells, folder, part.of(cells) if part else cells)


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning(text)


def recipe_file(folder: Path) -> Path:
    """Return the path of `recipe.yaml` in the folder of a study or pretraining.

    Raises:
        UserError: The folder does not exist or has no `recipe.yaml`.
    """
    kept = folder / "recipe.yaml"
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; name the folder of a run, such as results/dates-english")
    if not kept.is_file():
        what = "has no recipe.yaml, so it is not the" if folder.is_dir() else "is a file, not the"
        raise UserError(f"{folder} {what} folder of a training run or a study; name one, {trainings_in(folder)}")
    return kept


def open_grid(folder: Path) -> StudyGrid:
    """Return the grid of an existing study's folder.

    Raises:
        UserError: The folder has no recipe.yaml, or is the folder of a pretraining.
    """
    recipe = load_any_recipe(str(recipe_file(folder)))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{folder} is a pretraining; show it with `petransfer status {folder}`")
    return grid_of(recipe, folder)


def load_grid(
    recipe: str | Path | Mapping[str, Any],
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    out: Path | None = None,
    shard: str | None = None,
) -> StudyGrid:
    """Load a recipe, apply overrides, and return the grid.

    Args:
        recipe: The name of a shipped recipe, a YAML file, the folder of a study, or the recipe's content.
        sets: Overrides such as `train.steps=500`.
        options: Values for keys at the recipe's top level. A value of None changes nothing. If `seeds` is given, the
            further seeds of single arms in the recipe (`more_seeds`) do not count, but those in `sets` do.
        out: The study's folder. None: `results/<name of the recipe>`.
        shard: One part of the runs, such as `2/8` (part 2 of 8). None: all runs.

    Raises:
        UserError: The recipe cannot be read or is not valid.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if "seeds" in given:
        sets = ["more_seeds={}", *sets]  # the first override, so that `more_seeds` in `sets` counts
    if isinstance(recipe, Mapping):
        asked, dropped = _validated(recipe, sets, given)
    else:
        if (kept := recipe_of_folder(recipe)) is not None:
            recipe, out = kept, out or kept.parent
        asked, dropped = load_with_dropped_effects(str(recipe), list(sets), given)
    grid = grid_of(resolve(asked), out, shard)
    if not (grid.folder.path / "recipe.yaml").exists():  # a study that exists can always be read
        refuse_twin_arms(grid.recipe, grid.cells)
    return StudyGrid(grid.recipe, grid.cells, grid.folder, grid.selected, dropped)


def _validated(
    recipe: Mapping[str, Any], sets: Sequence[str], options: Mapping[str, Any]
) -> tuple[Recipe, Sequence[str]]:
    content = json.loads(json.dumps(dict(recipe), default=_plain))  # a copy that overrides may change
    for override in sets:
        apply_override(content, override)
    found = validate({**content, **options}, "the recipe")
    return without_impossible_effects(found) if options.get("arms") else (found, ())


def as_overrides(values: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Yield an override for each value in a nested mapping. place: prefix of all keys.

    >>> list(as_overrides({"train": {"steps": 500}, "judge_by": "accuracy"}))
    ['train.steps=500', 'judge_by="accuracy"']
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from as_overrides(value, f"{place}{key}.")
        else:
            text = json.dumps(value, default=_plain, ensure_ascii=False)
            # JSON escapes an emoji as two surrogates, which YAML reads as two characters; YAML's escape \U is one
            # character
            yield f"{place}{key}=" + re.sub("[^ -~]", lambda character: f"\\U{ord(character[0]):08x}", text)


def _plain(value: Any) -> Any:
    """Return a value that JSON lacks, such as a range, a path or a number of NumPy, as a value that JSON has."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return list(value)
    return value.item() if hasattr(value, "item") else str(value)
