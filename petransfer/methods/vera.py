"""VeRA (Kopiczko et al. 2024): two vectors a layer, around random matrices that all layers share and none trains."""

from __future__ import annotations

import torch
from peft import VeraConfig

from petransfer.methods.common import put, targets, task_type
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model with frozen weights; the shared matrices are drawn from `seed` and saved with the adapter.

    Raises:
        UserError: the targets name no layer.
    """
    config = VeraConfig(
        task_type=task_type(loaded),
        r=method.rank,
        target_modules=targets(loaded, method),
        vera_dropout=method.dropout,
        projection_prng_key=seed,
        save_projection=True,
    )
    return put(loaded, method, config, seed)
