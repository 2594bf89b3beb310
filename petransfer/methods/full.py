"""Full fine-tuning: train every weight of the model, in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from petransfer.recipe.methods import Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded

# The ending of the class name of position tables in Marian and Pegasus. These tables are parameters, but they are
# computed, not trained.
COMPUTED_TABLES = "SinusoidalPositionalEmbedding"


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with all weights trainable, except computed position tables and parts for images or audio."""
    from petransfer.models.text_part import text_filter

    model: torch.nn.Module = loaded.model.requires_grad_(True)
    is_text = text_filter(model)
    for name, value in model.named_parameters():
        value.requires_grad_(is_text(name))
    for module in model.modules():
        if type(module).__name__.endswith(COMPUTED_TABLES):
            module.requires_grad_(False)
    return model


def save(model: torch.nn.Module, folder: Path, base: str) -> None:
    """Save the whole model with transformers."""
    from petransfer.models.saving import save_model

    save_model(model, folder)


METHOD = Method(
    name="full",
    title="all weights",
    source="",
    apply=apply,
    learning_rate_factor=0.1,  # Biderman et al. 2024
    nano_learning_rate_factor=10,
    peft_type="",
    save=save,
    trains_all_weights=True,
    unsupported_bits=dict.fromkeys((8, 4), "8 and 4 bits are too coarse to train the weights themselves"),
    not_merged="it saves a whole model, not an adapter",
    not_stacked="it trains the base model's own weights",
)
