"""rsLoRA (Kalajdzievski 2023): LoRA scaled by alpha over the root of the rank."""

from __future__ import annotations

import torch

from petransfer.methods.common import put
from petransfer.methods.lora import configuration
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """As `lora.apply`."""
    return put(loaded, method, configuration(loaded, method, use_rslora=True), seed)
