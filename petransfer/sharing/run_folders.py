"""Find the folder of one run in the folder of its study."""

from __future__ import annotations

import json
from pathlib import Path

from petransfer.errors import UserError

# The largest number of runs that an error message lists.
LISTED = 8


def run_folder(folder: Path, run: str | None = None) -> Path:
    """Return the folder of a study's only finished run. Any other folder is returned unchanged.

    Args:
        run: first characters of a run's id. Needed for a study with several finished runs.

    Raises:
        UserError: the number of finished runs with this id is not 1, or `folder` is not a study's and `run` is given.
    """
    if not (folder / "runs").is_dir() or _is_of_another_program(folder):
        if run is not None:
            raise UserError(f"--run {run}: {folder} is not a study's folder; leave --run out")
        return folder
    saved = [path for path in sorted((folder / "runs").iterdir()) if _is_finished(path)]
    found = [path for path in saved if path.name.startswith(run or "")]
    if len(found) == 1:
        return found[0]
    if not saved:
        raise UserError(f"{folder} holds no finished run; `petransfer status {folder}` shows the progress of its runs")
    which = "finished runs" if run is None else f"finished runs whose id begins with {run}"
    listed = ", ".join(_described(path) for path in (found or saved)[:LISTED])
    more = f", and {len(found or saved) - LISTED} more" if len(found or saved) > LISTED else ""
    raise UserError(f"{folder} holds {len(found)} {which}; pick one with --run ID: {listed}{more}")


def is_whole_model(folder: Path) -> bool:
    """Return whether a folder contains a fully fine-tuned or merged model."""
    if (folder / "adapter_config.json").is_file() or (folder / "adapter").is_dir():
        return False
    return (folder / "petransfer.json").is_file() or ((folder / "model").is_dir() and not has_model(folder))


def _is_of_another_program(folder: Path) -> bool:
    """Return whether a folder is a model or adapter in which another program wrote its logs into `runs/`."""
    # The Trainer of transformers logs for TensorBoard there.
    return has_model(folder) and not any((folder / "runs").glob("*/spec.json"))


def has_model(folder: Path) -> bool:
    """Return whether a model or an adapter lies directly in a folder, and not in a folder inside it."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _is_finished(path: Path) -> bool:
    return (path / "DONE").is_file() and ((path / "adapter").is_dir() or (path / "model").is_dir())


def _described(path: Path) -> str:
    """Return a run's id with its checkpoint, method and seed. Without a readable spec.json, return the id."""
    try:
        spec = json.loads((path / "spec.json").read_text(encoding="utf-8"))
        return f"{path.name} ({spec['checkpoint']['name']}, {spec['method']['name']}, seed {spec['seed']})"
    except (OSError, ValueError, KeyError, TypeError):
        return path.name
