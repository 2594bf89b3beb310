"""Full fine-tuning: every weight is trained, held in fp32."""

from __future__ import annotations

from pathlib import Path

import torch

from petransfer.checkpoints.load import Loaded
from petransfer.recipe.spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model itself, all of it trained."""
    model: torch.nn.Module = loaded.model.requires_grad_(True)
    return model


def save(model: torch.nn.Module, folder: Path, base: str) -> None:
    """The whole model, as transformers writes it."""
    model.save_pretrained(folder)  # type: ignore[operator]
