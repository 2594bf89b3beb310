"""Norm tuning (Zhao et al. 2023): the scales, and biases where there are any, of LayerNorm and RMSNorm alone."""

from __future__ import annotations

import torch
from peft import LNTuningConfig

from petransfer.errors import UserError
from petransfer.methods.common import put, task_type
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model with frozen weights and copies of its norms that are trained. peft knows those of few architectures,
    T5's not; here they are all layers whose class is called a norm.

    Raises:
        UserError: there are none.
    """
    names = [
        name
        for name, module in loaded.model.named_modules()
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None
    ]
    if not names:
        raise UserError(f"{method.name}: {loaded.model.config.model_type} has no norms with a weight of their own")
    return put(loaded, method, LNTuningConfig(task_type=task_type(loaded), target_modules=names), seed)
