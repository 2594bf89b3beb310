"""Compare local bases with the records in a study's run folders. Imports torch only to compare tokenizers.

A run id contains a hash of the base's files. The records keep the ids of runs whose base is gone, or was saved again
with the same content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from petransfer.models.base_record import BASE_RECORD, changed_files, has_recorded_tokenizer
from petransfer.models.own_families import SEED
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.recipe.schema import ArmPart, FamilyPart, Recipe
from petransfer.study.damaged_runs import read_json
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, expand
from petransfer.user_paths import expanded

_PARTS = ("files", "tokenizer")


def cells_of(recipe: Recipe, folder: StudyFolder) -> tuple[Recipe, list[Cell]]:
    """Return the runs of a recipe with the ids that they have in a study's folder, and the recipe with known hashes.

    Raises:
        UserError: The recipe contains an unknown name, or a base is gone and no run records it.
    """
    recipe = _with_recorded_bases(recipe, folder)
    return recipe, _with_tokenizers_saved_again(_with_bases_saved_again(expand(recipe), folder), folder)


def changed_bases(cells: Sequence[Cell], folder: StudyFolder) -> dict[str, str]:
    """Return the local bases that changed since runs in a study's folder were made.

    Args:
        cells: The runs of a recipe (see `cells_of`).

    Returns:
        For each base's name, the names of its changed files, such as `config.json, tokenizer.json`. `files` if the
        runs do not record the files.
    """
    found = {}
    for checkpoint, records in _unrecorded(cells, folder):
        record = records[-1][1]
        found[checkpoint.name] = ", ".join(changed_files(checkpoint, record)) if record else "files"
    return found


def _with_bases_saved_again(cells: list[Cell], folder: StudyFolder) -> list[Cell]:
    """Return the runs. If a base has the recorded content but another hash, its runs get the recorded hash."""
    hashes = {}
    for checkpoint, records in _unrecorded(cells, folder):
        same = (old for old, record in records if record and not changed_files(checkpoint, record))
        hashes[checkpoint.name, checkpoint.weights] = next(same, checkpoint.weights)
    return [_with_hash(cell, hashes) for cell in cells]


def _with_hash(cell: Cell, hashes: Mapping[tuple[str, str], str]) -> Cell:
    checkpoint = cell.spec.checkpoint
    weights = hashes.get((checkpoint.name, checkpoint.weights), checkpoint.weights)
    return replace(cell, spec=replace(cell.spec, checkpoint=replace(checkpoint, weights=weights)))


def _with_tokenizers_saved_again(cells: list[Cell], folder: StudyFolder) -> list[Cell]:
    """Return the runs. If a local tokenizer has the recorded content but another hash, runs get the recorded name."""
    names = folder.names()
    asked = {
        cell.spec.checkpoint.tokenizer: cell.spec.checkpoint
        for cell in cells
        if cell.spec.checkpoint.tokenizer_source and names and cell.run_id not in names
    }
    records = {str(spec["checkpoint"].get("tokenizer")): _record(spec) for spec in _specs(folder)} if asked else {}
    found = {
        new: old
        for new, checkpoint in asked.items()
        for old, record in records.items()
        if new not in records and _folder_of(old) == _folder_of(str(new))
        if record and has_recorded_tokenizer(checkpoint, record)
    }
    return [_with_tokenizer(cell, found) for cell in cells]


def _with_tokenizer(cell: Cell, names: Mapping[str | None, str]) -> Cell:
    checkpoint = cell.spec.checkpoint
    tokenizer = names.get(checkpoint.tokenizer, checkpoint.tokenizer)
    return replace(cell, spec=replace(cell.spec, checkpoint=replace(checkpoint, tokenizer=tokenizer)))


def _folder_of(tokenizer: str) -> str:
    """Return the name of a local tokenizer's folder. tokenizer: the folder's name, @ and a hash of the files."""
    return tokenizer.rpartition("@")[0]


def _unrecorded(
    cells: Sequence[Cell], folder: StudyFolder
) -> list[tuple[CheckpointSpec, list[tuple[str, dict[str, Any]]]]]:
    """Return each local base that is recorded only with other hashes, together with these hashes and their records.

    The records are sorted by age. A record is empty if the run does not describe the base's files.
    """
    names = folder.names()
    local = [cell for cell in cells if cell.spec.checkpoint.source and names]
    if all(cell.run_id in names for cell in local):
        return []
    bases = {(cell.spec.checkpoint.name, cell.spec.checkpoint.weights): cell.spec.checkpoint for cell in local}
    specs, found = _specs(folder), []
    for (name, weights), checkpoint in bases.items():
        recorded = {
            str(spec["checkpoint"].get("weights")): _record(spec)
            for spec in specs
            if spec["checkpoint"].get("name") == name and _may_have_held(spec["checkpoint"].get("source"), checkpoint)
        }
        others = [(old, record) for old, record in recorded.items() if (name, old) not in bases]
        if others and weights not in recorded:
            found.append((checkpoint, others))
    return found


def _may_have_held(source: object, checkpoint: CheckpointSpec) -> bool:
    """Return whether a recorded folder may have held this checkpoint: it is the same folder, or no longer exists."""
    there = Path(str(checkpoint.source))
    return there.exists() and bool(source) and (Path(str(source)) == there or not Path(str(source)).exists())


def _record(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of the base's files in the content of a spec.json. Empty if there is none."""
    record = spec.get(BASE_RECORD)
    return record if isinstance(record, dict) and all(isinstance(record.get(key), dict) for key in _PARTS) else {}


def _with_recorded_bases(recipe: Recipe, folder: StudyFolder) -> Recipe:
    """Return the recipe with the recorded sha256 of each arm whose local folder is gone.

    The run ids contain these hashes. So a study can be read after a base was removed or moved.

    Args:
        folder: The study's folder. The `spec.json` of each of its runs records the base.
    """
    if not isinstance(recipe.family, FamilyPart):
        return recipe
    arms = dict(recipe.family.arms)
    for name, given in recipe.family.arms.items():
        entry = ArmPart(checkpoint=given) if isinstance(given, str) else given
        if entry.sha256 is None and SEED not in entry.checkpoint and not expanded(entry.checkpoint).exists():
            hashes = _recorded_hashes(folder, expanded(entry.checkpoint).name)
            if len(hashes) == 1:  # of several bases with this folder name, the right one is unknown
                arms[name] = entry.model_copy(update={"sha256": hashes.pop()})
    return recipe.model_copy(update={"family": recipe.family.model_copy(update={"arms": arms})})


def _recorded_hashes(folder: StudyFolder, name: str) -> set[str]:
    """Return the hashes of the local bases that the runs record for folders called `name`."""
    bases = [spec["checkpoint"] for spec in _specs(folder)]
    return {str(base["weights"]) for base in bases if base.get("source") and base.get("name") == name}


def _specs(folder: StudyFolder) -> list[dict[str, Any]]:
    """Return the content of each readable spec.json in a study's folder, the oldest first."""
    paths = [folder.run(run_id).path / "spec.json" for run_id in folder.names()]
    dated = sorted((path.stat().st_mtime_ns, path) for path in paths if path.is_file())
    specs = [read_json(path) or {} for _, path in dated]
    return [spec for spec in specs if isinstance(spec.get("checkpoint"), dict)]
