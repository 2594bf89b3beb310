"""DoRA (Liu et al. 2024): LoRA on the direction of each column of the weights, and a trained size for each."""

from __future__ import annotations

import torch

from petransfer.methods.common import put
from petransfer.methods.lora import configuration
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """As `lora.apply`; its norms are computed in fp32."""
    return put(loaded, method, configuration(loaded, method, use_dora=True), seed)
