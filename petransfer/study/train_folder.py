"""Choose the folder of a training: an earlier folder with equal settings, or a new folder."""

from __future__ import annotations

import itertools
from pathlib import Path

from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.quick_recipe import with_absolute_paths
from petransfer.study.recorded_bases import cells_of, changed_bases
from petransfer.study.setting_changes import setting_changes, short_value

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
    found = setting_changes(other, recipe, _COMPARED)
    if not set(other.seeds) <= set(recipe.seeds):
        found.append(f"seeds={short_value(other.seeds)} (you asked for {short_value(recipe.seeds)})")
    return found or [
        f"the base {name} before its {files} changed"
        for name, files in changed_bases(cells_of(recipe, study)[1], study).items()
    ]


_WORTH_KEEPING = ("done", "interrupted", "running")
