"""Save a whole model so that loading it gives the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_model(model: Any, folder: str | Path, **options: Any) -> None:
    """Write a model as transformers' `save_pretrained` does, without leaving out any tensor.

    `MarianMTModel.save_pretrained` leaves out the position embeddings because Marian computes them. A checkpoint with
    learned position embeddings would then be reloaded with other ones. If the tensors are in the file, plain
    transformers loads them.

    Args:
        options: passed to `save_pretrained`.
    """
    left_out = getattr(model, "_keys_to_ignore_on_save", None)
    model._keys_to_ignore_on_save = None
    try:
        model.save_pretrained(folder, **options)
    finally:
        model._keys_to_ignore_on_save = left_out
