"""rsLoRA (Kalajdzievski 2023): LoRA scaled by alpha over the root of the rank."""

from __future__ import annotations

import torch

from petransfer.checkpoints.load import Loaded
from petransfer.methods.adapted import put
from petransfer.methods.lora import configuration
from petransfer.recipe.spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """As `lora.apply`."""
    return put(loaded, method, configuration(loaded, method, use_rslora=True), seed)
