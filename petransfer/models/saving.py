"""Save a whole model so that loading it gives the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_model(model: Any, folder: str | Path, **options: Any) -> None:
    """Write a model as transformers' `save_pretrained` does, without leaving out any tensor.

    `MarianMTModel.save_pretrained` leaves out the position embeddings, because Marian usually computes them. If a model
    with learned position embeddings is saved in this way, it has other position embeddings after it is loaded again.
    Plain transformers loads the position embeddings if they are in the file.

    Args:
        model: the model.
        folder: the folder that the model is written to.
        **options: other arguments of `save_pretrained`.
    """
    left_out = getattr(model, "_keys_to_ignore_on_save", None)
    model._keys_to_ignore_on_save = None
    try:
        model.save_pretrained(folder, **options)
    finally:
        model._keys_to_ignore_on_save = left_out
