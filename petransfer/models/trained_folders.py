"""Tell the folder of an adapter, a run or a study, or a bundle file, from the folder of a base model."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path


def advice_for_training(folder: Path, name: str) -> str:
    """Return what a trained folder or a bundle is, and how its model becomes a base model. '' for other paths.

    Args:
        folder: A folder, or the file of a bundle.
        name: Its name as the user wrote it.
    """
    if _is_bundle(folder):
        return _merge_first(name)
    models = [folder / "model", *sorted(folder.glob("runs/*/model"))]
    whole = next((one for one in models if (one / "config.json").is_file()), None)
    if whole:
        return f"a finished training, not a base model; name the folder of the trained model, {whole}"
    adapters = [folder, folder / "adapter", *folder.glob("runs/*/adapter")]
    if not any((one / "adapter_config.json").is_file() for one in adapters):
        return ""
    return _merge_first(name)


def _merge_first(name: str) -> str:
    """Return that `name` is an adapter, and how it is merged into its base model."""
    merge = f"`petransfer adapter merge {shlex.quote(name)} merged`"
    return f"an adapter, not a base model; {merge} writes a base model with the adapter's changes to the folder merged"


def _is_bundle(path: Path) -> bool:
    """Return whether a path is a zip file of an adapter, under any name."""
    if not path.is_file():  # reading a named pipe would wait forever
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "adapter_config.json" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
