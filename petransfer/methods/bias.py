"""BitFit (Ben Zaken et al. 2022): biases alone. Where the architecture has none, as T5, its norms are trained."""

from __future__ import annotations

import torch
from peft import LoraConfig

from petransfer.methods import ln
from petransfer.methods.common import NOWHERE, compute_narrow, put, task_type
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model with all but its biases frozen; peft keeps them as a LoRA on no layer that trains biases.

    Raises:
        UserError: it has neither biases nor norms.
    """
    if not any(_is_bias(name) for name, _ in loaded.model.named_parameters()):
        return ln.apply(loaded, method, seed)
    config = LoraConfig(task_type=task_type(loaded), target_modules=NOWHERE, bias="all")
    model = put(loaded, method, config, seed)
    for name, value in model.named_parameters():
        value.requires_grad_(_is_bias(name))  # peft takes T5's table of relative positions for a bias too
    if method.bits < 32:
        for module in model.modules():
            bias = module._parameters.get("bias")
            if bias is not None and bias.requires_grad:
                compute_narrow(module, ("bias",))
    return model


def _is_bias(name: str) -> bool:
    return name.endswith(".bias")
