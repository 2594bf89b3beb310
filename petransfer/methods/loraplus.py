"""LoRA+ (Hayou et al. 2024): LoRA whose B is trained at `rate_ratio` times the rate of its A."""

from __future__ import annotations

import torch

from petransfer.methods import lora
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """As `lora.apply`; each B carries its rate's factor for the optimiser."""
    model = lora.apply(loaded, method, seed)
    for name, value in model.named_parameters():
        if ".lora_B." in name or ".lora_embedding_B." in name:
            value.rate_factor = method.rate_ratio  # type: ignore[attr-defined]
    return model
