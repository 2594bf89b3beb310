"""The methods by name: each marks what of a model is trained and says how that is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from petransfer.methods import bias, dora, full, ia3, ln, lora, loraplus, pissa, prefix, prompt, rslora, vera
from petransfer.methods import common as adapted
from petransfer.methods.parameter_matching import sized
from petransfer.models.lengths import VirtualTokens
from petransfer.models.loading import Loaded
from petransfer.recipe.method_forms import FORMS
from petransfer.recipe.run_spec import Bits, MethodSpec

Apply = Callable[[Loaded, MethodSpec, int], torch.nn.Module]

_MODULES = {
    "lora": lora, "rslora": rslora, "loraplus": loraplus, "dora": dora, "pissa": pissa, "vera": vera, "ia3": ia3,
    "prompt": prompt, "prefix": prefix, "ln": ln, "bias": bias, "full": full,
}  # fmt: skip


def _with_its_size(apply: Apply) -> Apply:
    """The method at the rank or number of virtual tokens that `match_parameters` asks for."""
    return lambda loaded, method, seed: apply(loaded, sized(loaded, method, apply), seed)


APPLY: dict[str, Apply] = {name: _with_its_size(module.apply) for name, module in _MODULES.items()}
SAVE: dict[str, Callable[[torch.nn.Module, Path, str], None]] = {
    name: getattr(module, "save", adapted.save) for name, module in _MODULES.items()
}


def size_of(loaded: Loaded, method: MethodSpec) -> MethodSpec:
    """The method with the rank or number of virtual tokens that `match_parameters` asks for; see `sizes.sized`."""
    return sized(loaded, method, _MODULES[method.name].apply)


def virtual_tokens(loaded: Loaded, method: MethodSpec) -> VirtualTokens:
    """The positions that a method's virtual tokens take, their number found where it is to be.

    A prompt stands before the input; a prefix before what the decoder's own attention sees.
    """
    if FORMS[method.name].size != "virtual_tokens":
        return VirtualTokens()
    tokens = size_of(loaded, method).virtual_tokens
    return VirtualTokens(input=tokens) if method.name == "prompt" else VirtualTokens(target=tokens)


def weights_bits(method: MethodSpec) -> Bits:
    """The bits to load in: weights that are all trained are held in fp32, whatever the bits of the computation."""
    return 32 if method.name == "full" else method.bits


def mixed_precision(method: MethodSpec) -> str:
    """Accelerate's name for the precision of the forward pass."""
    return "bf16" if method.name == "full" and method.bits == 16 else "no"
