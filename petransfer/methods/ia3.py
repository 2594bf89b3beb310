"""(IA)3 (Liu et al. 2022): vectors that scale the keys, the values and what goes into the last layer of each MLP."""

from __future__ import annotations

import torch
from peft import IA3Config
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS

from petransfer.errors import UserError
from petransfer.methods.common import put, targets, task_type
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model with frozen weights and vectors of ones, on the layers that peft knows for its architecture.

    Raises:
        UserError: it knows none, and no targets are given.
    """
    kind = str(loaded.model.config.model_type)
    kind = "t5" if kind == "mt5" else kind  # of mT5 peft would scale one of two halves of each MLP
    if method.targets == "all-linear" and kind not in TARGETS:
        raise UserError(f"ia3: which layers of {kind} are keys and values is not known; name them in targets")
    chosen = targets(loaded, method, TARGETS.get(kind))
    last = tuple(FEEDFORWARD.get(kind, ()))
    names = [name for name in chosen if any(name == end or name.endswith(f".{end}") for end in last)]
    config = IA3Config(
        task_type=task_type(loaded),
        target_modules=chosen,
        feedforward_modules=names if isinstance(chosen, list) else list(last),
    )
    return put(loaded, method, config, seed)
