"""Find the folder of one run in the folder of its study."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from petransfer.errors import UserError, shortened
from petransfer.plurals import count
from petransfer.recipe.run_spec import RunSpec, without_local_fields
from petransfer.study.deleted_weights import has_no_weights, note_on_weights

_log = logging.getLogger(__name__)

# The largest number of runs that an error message lists.
LISTED = 8


def run_folder(folder: Path, run: str | None = None) -> Path:
    """Return the folder of a study's only finished run. Any other folder is returned unchanged.

    Args:
        run: first characters of a run's id. Needed for a study with several finished runs. A whole id always selects
            the run with this id.

    Raises:
        UserError: the number of finished runs with this id is not 1, or `folder` is not a study's and `run` is given.
    """
    if not (folder / "runs").is_dir() or _is_of_another_program(folder):
        if run is not None:
            raise UserError(f"--run {run}: {folder} is not a study's folder; leave --run out")
        _refuse_without_weights([folder])
        return folder
    paths = sorted((folder / "runs").iterdir())
    saved = _without_copies([path for path in paths if _is_finished(path) and not has_no_weights(path)])
    found = [path for path in saved if path.name == run] or [path for path in saved if path.name.startswith(run or "")]
    if len(found) == 1:
        return found[0]
    if not found:
        _refuse_without_weights([path for path in paths if path.name.startswith(run or "")])
    if not saved:
        raise UserError(f"{folder} holds no finished run; `petransfer status {folder}` shows the progress of its runs")
    runs = count(len(found), "finished run") if found else "no finished run"
    which = runs if run is None else f"{runs} whose id begins with {run}"
    listed = ", ".join(_descriptions((found or saved)[:LISTED]))
    more = f", and {len(found or saved) - LISTED} more" if len(found or saved) > LISTED else ""
    raise UserError(
        f"{folder} holds {which}; name the folder of one, such as {(found or saved)[0]}, or give --run ID "
        f"to predict, eval or serve: {listed}{more}"
    )


def _refuse_without_weights(runs: list[Path]) -> None:
    """Raise UserError if the weights of finished runs among `runs` were deleted."""
    lost = [path.absolute().name for path in runs if has_no_weights(path)]
    if lost:
        study = runs[0].parent.parent if runs[0].parent.name == "runs" else runs[0].absolute().parent.parent
        raise UserError(note_on_weights(study, lost))


def _without_copies(saved: list[Path]) -> list[Path]:
    """Leave out copies of run folders. A copy has another name than its run id, as cloud storage programs make them.

    If every folder has another name than its run id, all folders are returned.
    """
    copies = [path for path in saved if _id_in_spec(path) not in (None, path.name)]
    if not copies or len(copies) == len(saved):
        return saved
    _log.warning(
        "ignoring %s: the folder's name is not the id of the run in it%s; remove copies of run folders",
        copies[0],
        f", and {len(copies) - 1} more" if len(copies) > 1 else "",
    )
    return [path for path in saved if path not in copies]


def _id_in_spec(path: Path) -> str | None:
    """Return the run id of the spec in a run's folder. None if spec.json cannot be read."""
    try:
        return RunSpec.from_dict(json.loads((path / "spec.json").read_text(encoding="utf-8"))).run_id
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
        return None


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


def _descriptions(paths: list[Path]) -> list[str]:
    """Return each run's id with its checkpoint, method, seed and the other settings that differ among the runs.

    A run without a readable spec.json is described by its id.
    """
    settings = {path: _settings(path) for path in paths}
    known = [found for found in settings.values() if found]
    names = {name for found in known for name in found if name not in _ALWAYS_SHOWN}
    differing = sorted(name for name in names if len({found.get(name) for found in known}) > 1)
    return [
        f"{path.name} ({', '.join(_shown_settings(found, differing))})" if found else path.name
        for path, found in settings.items()
    ]


_ALWAYS_SHOWN = ("checkpoint.name", "method.name", "seed")
# The largest number of further settings that the description of a run shows.
_MOST_SETTINGS = 3


def _shown_settings(found: dict[str, str], differing: list[str]) -> list[str]:
    checkpoint, method, seed = (found.get(name, "") for name in _ALWAYS_SHOWN)
    others = [(name.partition(".")[2] or name, shortened(found.get(name, "not set"), 30)) for name in differing]
    return [checkpoint, method, f"seed {seed}", *(f"{name} {value}" for name, value in others[:_MOST_SETTINGS])]


def _settings(path: Path) -> dict[str, str]:
    """Return the settings of a run by their place in spec.json, such as `train.steps`. Empty if it is not readable."""
    try:
        spec = RunSpec.from_dict(json.loads((path / "spec.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
        return {}
    found: dict[str, str] = {}
    for part, content in without_local_fields(spec.as_dict()).items():
        values = content if isinstance(content, dict) else {"": content}
        found |= {f"{part}.{name}" if name else part: str(value) for name, value in values.items()}
    if "checkpoint.weights" in found:
        found["checkpoint.weights"] = found["checkpoint.weights"][:8]
    return found
