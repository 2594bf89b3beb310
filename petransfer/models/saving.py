"""Save a whole model so that loading it gives the same model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def save_model(model: Any, folder: str | Path, **options: Any) -> None:
    """Write a model with transformers' `save_pretrained`, with all tensors.

    Raises:
        OSError: The weights cannot be written, for example because the disk is full.
    """
    # Marian's `save_pretrained` leaves out the position embeddings, because Marian usually computes them. A model with
    # learned position embeddings would lose them.
    left_out = getattr(model, "_keys_to_ignore_on_save", None)
    model._keys_to_ignore_on_save = None
    try:
        model.save_pretrained(folder, **options)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder)) from error
    finally:
        model._keys_to_ignore_on_save = left_out
