"""Training methods: one file each, which declares everything about the method. Importing this package loads no torch.

To add a method, write a file that assigns a `petransfer.recipe.methods.Method`, here or in another package with an
entry point of the group `petransfer.methods`. Import torch, peft and `petransfer.methods.shared` inside its functions:
recipes are validated by these files, and must not wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import Bits, MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.lengths import VirtualTokens
    from petransfer.models.loading import Loaded


def apply_method(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model in which only the method's tensors are trained.

    Args:
        loaded: the base; its model is changed in place.
        method: where it names `match_parameters`, the size is found first.
        seed: what new tensors are drawn from.

    Raises:
        UserError: the method cannot be applied to this model.
    """
    model: torch.nn.Module = METHODS.lookup(method.name).apply(loaded, with_size(loaded, method), seed)
    return model


def save_method(name: str, model: torch.nn.Module, folder: Path, base: str) -> None:
    """Save what the method called `name` has trained into `folder`.

    base: the base's name, for adapter_config.json.
    """
    from petransfer.methods.shared.saving import save_adapter

    save = METHODS.lookup(name).save or save_adapter
    save(model, folder, base)


def with_size(loaded: Loaded, method: MethodSpec) -> MethodSpec:
    """Return the method with the rank or number of virtual tokens that `match_parameters` asks for.

    Raises:
        UserError: no size trains nearly as many parameters.
    """
    from petransfer.methods.shared.parameter_matching import with_matched_size

    return with_matched_size(loaded, method, METHODS.lookup(method.name).apply)


def virtual_tokens(loaded: Loaded, method: MethodSpec) -> VirtualTokens:
    """Return how many positions a method's virtual tokens take before the input and before the target."""
    from petransfer.models.lengths import VirtualTokens

    place = METHODS.lookup(method.name).virtual_tokens_before
    return VirtualTokens(**{place: with_size(loaded, method).virtual_tokens}) if place else VirtualTokens()


def weights_bits(method: MethodSpec) -> Bits:
    """Return the bits in which the base is loaded: 32 where all its weights are trained."""
    return 32 if METHODS.lookup(method.name).trains_all_weights else method.bits


def computes_narrower(method: MethodSpec) -> bool:
    """Return whether the forward pass is computed in bf16 although the weights are in fp32."""
    return METHODS.lookup(method.name).trains_all_weights and method.bits == 16
