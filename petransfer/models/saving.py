"""Save a whole model so that loading it gives the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_model(model: Any, folder: str | Path, **options: Any) -> None:
    """Write a model with transformers' `save_pretrained`, with all tensors."""
    # Marian's `save_pretrained` leaves out the position embeddings, because Marian usually computes them. A model with
    # learned position embeddings would lose them.
    left_out = getattr(model, "_keys_to_ignore_on_save", None)
    model._keys_to_ignore_on_save = None
    try:
        model.save_pretrained(folder, **options)
    finally:
        model._keys_to_ignore_on_save = left_out
