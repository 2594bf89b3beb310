"""Find an adapter, a whole model or a base checkpoint by name: on this machine, in a bundle, or on the hub.

This module does not import torch, so that a wrong name is reported at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from petransfer.errors import UserError
from petransfer.models.registry import checkpoint_spec, is_embedded
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.sharing.bundle import Bundle, bundle_of_folder, bundle_of_whole_model, is_hub_id, open_bundle
from petransfer.sharing.hub import holds_adapter
from petransfer.sharing.run_folders import is_whole_model, run_folder
from petransfer.user_paths import expanded

Kind = Literal["adapter", "model", "checkpoint"]


@dataclass(frozen=True)
class ModelSource:
    """An adapter or model that can predict.

    kind: `adapter`, `model` (fully fine-tuned or merged by petransfer) or `checkpoint` (any other model).
    bundle: files of an adapter or a model. None for a checkpoint.
    folder: folder of a model. None for an adapter or a checkpoint.
    checkpoint: the checkpoint. None for an adapter or a model.
    """

    label: str
    kind: Kind
    bundle: Bundle | None = None
    folder: Path | None = None
    checkpoint: CheckpointSpec | None = None

    def adapter(self) -> Bundle:
        """Return the bundle of an adapter.

        Raises:
            UserError: the source is a whole model or a base checkpoint.
        """
        if self.kind != "adapter" or self.bundle is None:
            raise UserError(f"{self.label} is a whole model, not an adapter; this needs an adapter")
        return self.bundle


@contextlib.contextmanager
def opened_source(place: str, run: str | None = None) -> Iterator[ModelSource]:
    """Open an adapter, a whole model or a base checkpoint by name.

    Files from a zip or the hub are in a temporary folder, which is removed at the end of the `with` block.

    Args:
        place: folder of a run, study, adapter or model; a bundle; `nano/<arm>`; or a hub id.
        run: first characters of a run's id. Needed for a study with several finished runs.

    Raises:
        UserError: there is no adapter or model at `place`, or its files fail a check.
    """
    path = expanded(place)
    if run is not None and not path.is_dir():
        raise UserError(f"--run {run}: {place} is not the folder of a study; leave --run out")
    if is_embedded(place):
        yield ModelSource(place, "checkpoint", checkpoint=checkpoint_spec(place))
    elif path.is_dir():
        yield _of_folder(run_folder(path, run), place)
    elif is_hub_id(place) and not path.exists() and not holds_adapter(place):
        yield ModelSource(place, "checkpoint", checkpoint=checkpoint_spec(place))
    else:
        with open_bundle(place, run=run) as bundle:
            yield ModelSource(bundle.label, "adapter", bundle)


def _of_folder(folder: Path, label: str) -> ModelSource:
    if is_whole_model(folder):
        return ModelSource(label, "model", bundle_of_whole_model(folder, label), folder)
    plain = (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()
    if plain:
        return ModelSource(label, "checkpoint", checkpoint=checkpoint_spec(str(folder.resolve())))
    return ModelSource(label, "adapter", bundle_of_folder(folder, label))
