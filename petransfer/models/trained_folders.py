"""Tell the folder of an adapter, a run or a study from the folder of a base model."""

from __future__ import annotations

import shlex
from pathlib import Path


def advice_for_training(folder: Path, name: str) -> str:
    """Return what a trained folder is, and how its model becomes a base model. '' for other folders.

    Args:
        name: The folder's name as the user wrote it.
    """
    models = [folder / "model", *sorted(folder.glob("runs/*/model"))]
    whole = next((one for one in models if (one / "config.json").is_file()), None)
    if whole:
        return f"a finished training, not a base model; name the folder of the trained model, {whole}"
    adapters = [folder, folder / "adapter", *folder.glob("runs/*/adapter")]
    if not any((one / "adapter_config.json").is_file() for one in adapters):
        return ""
    merge = f"`petransfer adapter merge {shlex.quote(name)} merged`"
    return f"an adapter, not a base model; {merge} writes a base model with the adapter's changes to the folder merged"
