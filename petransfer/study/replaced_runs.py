"""Find finished runs of a study's folder that a changed recipe no longer counts. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from petransfer.errors import UserError
from petransfer.plurals import count
from petransfer.recipe.loading import load_recipe, recipe_yaml
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.recorded_bases import cells_of
from petransfer.study.setting_changes import setting_changes

# Other arms or seeds leave the runs of the remaining arms and seeds as they are.
_COMPARED = ("task", "family", "methods", "train", "data_dir")


def note_on_replaced_runs(recipe: Recipe, cells: Sequence[Cell], folder: StudyFolder) -> str:
    """Return a note on finished runs with the arm, method, split and seed of a new run, but other settings.

    The note is '' if there are no such runs, or if the folder's recipe cannot be read.

    Args:
        recipe: The resolved recipe.
        cells: The runs of the recipe.
        folder: The study's folder.
    """
    text = folder.recipe_text()
    if not text or text == recipe_yaml(recipe):
        return ""
    try:
        before, old = cells_of(load_recipe(str(folder.path / "recipe.yaml")), folder)
    except UserError:
        return ""
    now = {_place(cell): cell.run_id for cell in cells}
    replaced = [cell for cell in old if now.get(_place(cell), cell.run_id) != cell.run_id]
    lost = [cell for cell in replaced if folder.run(cell.run_id).done]
    changes = setting_changes(before, recipe, _COMPARED)
    if not lost or not changes:
        return ""
    does = "it does" if len(lost) == 1 else "they do"
    return (
        f"{folder.path} has {count(len(lost), 'finished run')} with {'; '.join(changes[:3])}; {does} not count in this "
        "study, and the new settings need new runs; use --out for a new folder to keep both studies"
    )


def _place(cell: Cell) -> tuple[str, str, str, int]:
    return cell.arm, cell.method, cell.split, cell.seed
