"""Find finished runs whose trained weights were deleted, and explain how to restore them. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from petransfer.plurals import count
from petransfer.study.folders import RunFolder


def has_no_weights(run: Path) -> bool:
    """Return whether a run is finished, and neither an adapter nor a model is in its folder.

    A run that was not scored on the test set never saved its weights and does not count.
    """
    if any(next((run / part).glob("*.safetensors"), None) for part in ("adapter", "model")):
        return False
    return RunFolder(run).scored


def note_on_weights(study: Path, runs: Sequence[str]) -> str:
    """Return a text that says which weights were deleted, and how to get them back. Empty if no run lacks them.

    Args:
        study: the study's folder.
        runs: the ids of the runs without weights.
    """
    if not runs:
        return ""
    where = study / "runs" / runs[0]
    others = f"; the same holds for {count(len(runs) - 1, 'other run')}" if runs[1:] else ""
    lost = f"{where} has no *.safetensors in adapter/ or model/{others}"
    missing = f"{count(len(runs), 'finished run')} without trained weights: {lost}. The scores are kept"
    if not (study / "recipe.yaml").is_file():
        return f"{missing}. To use the trained model, put the deleted files back"
    delete = f"delete the folder {where}" if len(runs) == 1 else "delete the folders of these runs"
    again = f"run `{run_command(study)}`, which does not repeat other finished runs"
    return f"{missing}. To get the weights back, {delete} and {again}"


def short_note_on_weights(runs: int) -> str:
    """Return a note on this number of finished runs without weights. Empty for 0."""
    # people share studies without weights on purpose, so there is no advice to delete anything
    if not runs:
        return ""
    verb = "has" if runs == 1 else "have"
    return (
        f"{count(runs, 'finished run')} {verb} no trained weights: the scores are kept, but `predict` needs the weights"
    )


def run_command(study: Path) -> str:
    """Return the command that executes the unfinished runs of a study in its own folder."""
    recipe, out = (shlex.quote(str(path)) for path in (study / "recipe.yaml", study))
    return f"petransfer run --recipe {recipe} --out {out}"
