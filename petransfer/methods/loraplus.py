"""LoRA+ (Hayou et al. 2024): LoRA with a higher learning rate for matrix B, by the factor `rate_ratio`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petransfer.methods import lora
from petransfer.recipe.methods import LORA_KEYS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with LoRA. The attribute `learning_rate_scale` of each matrix B scales its learning rate."""
    model = lora.apply(loaded, method, seed)
    for name, value in model.named_parameters():
        if ".lora_B." in name or ".lora_embedding_B." in name:
            value.learning_rate_scale = method.rate_ratio  # type: ignore[attr-defined]
    return model


METHOD = Method(
    name="loraplus",
    title="LoRA+",
    source="Hayou et al. 2024",
    apply=apply,
    learning_rate_factor=0.15,
    nano_learning_rate_factor=0.3,
    keys=LORA_KEYS | {"rate_ratio"},
    size="rank",
    not_stacked="its two matrices have different learning rates",
)
