"""Full fine-tuning: every weight is trained, held in fp32."""

from __future__ import annotations

from pathlib import Path

import torch

from petransfer.models.loading import Loaded
from petransfer.models.saving import save_model
from petransfer.recipe.run_spec import MethodSpec

# Tables that are computed and not learned, which Marian and Pegasus hold as parameters and read without a gradient.
COMPUTED = "SinusoidalPositionalEmbedding"


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model itself, all that is learned of it trained."""
    model: torch.nn.Module = loaded.model.requires_grad_(True)
    for module in model.modules():
        if type(module).__name__.endswith(COMPUTED):
            module.requires_grad_(False)
    return model


def save(model: torch.nn.Module, folder: Path, base: str) -> None:
    """The whole model, as transformers writes it."""
    save_model(model, folder)
