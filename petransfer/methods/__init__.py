"""The methods by name: each marks what of a model is trained and says how that is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from petransfer.checkpoints.load import Loaded
from petransfer.methods import full, lora
from petransfer.recipe.spec import Bits, MethodSpec

APPLY: dict[str, Callable[[Loaded, MethodSpec, int], torch.nn.Module]] = {"lora": lora.apply, "full": full.apply}
SAVE: dict[str, Callable[[torch.nn.Module, Path, str], None]] = {"lora": lora.save, "full": full.save}


def weights_bits(method: MethodSpec) -> Bits:
    """The bits to load in: weights that are all trained are held in fp32, whatever the bits of the computation."""
    return 32 if method.name == "full" else method.bits


def mixed_precision(method: MethodSpec) -> str:
    """Accelerate's name for the precision of the forward pass."""
    return "bf16" if method.name == "full" and method.bits == 16 else "no"
