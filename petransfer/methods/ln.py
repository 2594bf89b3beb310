"""Norm tuning (Zhao et al. 2023): train only the scales and biases of LayerNorm and RMSNorm layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petransfer.errors import UserError
from petransfer.recipe.methods import NO_FSDP_AT_16_BITS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and trainable copies of its norm layers."""
    from peft import LNTuningConfig

    from petransfer.methods.shared.attach import attach_adapter, task_type
    from petransfer.models.text_part import text_filter

    is_text = text_filter(loaded.model)
    # the class names of norm layers contain "norm"; peft's own list has only a few architectures, and not T5
    names = [
        name
        for name, module in loaded.model.named_modules()
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None and is_text(name)
    ]
    if not names:
        raise UserError(
            f"{method.name}: {loaded.model.config.model_type} has no normalisation layers with weights; use "
            "another method"
        )
    config = LNTuningConfig(task_type=task_type(loaded), target_modules=names)
    return attach_adapter(loaded, method, config, seed)


METHOD = Method(
    name="ln",
    title="norm tuning",
    source="Zhao et al. 2023",
    apply=apply,
    learning_rate_factor=5,
    nano_learning_rate_factor=60,
    peft_type="LN_TUNING",
    not_stacked="it replaces the base's own norms",
    not_split={16: NO_FSDP_AT_16_BITS},
)
