"""Training methods. The file of a method declares everything about it. Importing this package does not import torch.

To add a method, write a file that assigns a `petransfer.recipe.methods.Method` to a name. Put it into this package, or
into another package that has an entry point in the group `petransfer.methods`. Import torch, peft and
`petransfer.methods.shared` only inside functions: the file is also imported to validate recipes, which must be fast.
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
    """Apply a training method, and return the model in which only the method's tensors are trainable.

    Args:
        loaded: the base model and its tokenizer; the model is changed in place.
        method: the method; if it sets `match_parameters`, its rank or number of virtual tokens is computed first.
        seed: the seed of the random values in new tensors.

    Raises:
        UserError: the method cannot be applied to this model.
    """
    model: torch.nn.Module = METHODS.lookup(method.name).apply(loaded, with_size(loaded, method), seed)
    return model


def save_method(name: str, model: torch.nn.Module, folder: Path, base: str) -> None:
    """Save the adapter (or, for `full`, the whole model) that was trained by a method.

    Args:
        name: the name of the method.
        model: the trained model, as `apply_method` returned it.
        folder: the folder that the files are written to.
        base: the name of the base model, for adapter_config.json.
    """
    from petransfer.methods.shared.saving import save_adapter

    save = METHODS.lookup(name).save or save_adapter
    save(model, folder, base)


def with_size(loaded: Loaded, method: MethodSpec) -> MethodSpec:
    """Return the method with the rank or number of virtual tokens that trains about `match_parameters` parameters.

    A method without `match_parameters` is returned unchanged.

    Raises:
        UserError: no rank or number of virtual tokens gives nearly this number of trained parameters.
    """
    from petransfer.methods.shared.parameter_matching import with_matched_size

    return with_matched_size(loaded, method, METHODS.lookup(method.name).apply)


def virtual_tokens(loaded: Loaded, method: MethodSpec) -> VirtualTokens:
    """Return how many virtual tokens a method puts before the input and before the target of the model."""
    from petransfer.models.lengths import VirtualTokens

    place = METHODS.lookup(method.name).virtual_tokens_before
    return VirtualTokens(**{place: with_size(loaded, method).virtual_tokens}) if place else VirtualTokens()


def weights_bits(method: MethodSpec) -> Bits:
    """Return the bits per weight of the base model: 32 if the method trains all weights, otherwise `method.bits`."""
    return 32 if METHODS.lookup(method.name).trains_all_weights else method.bits


def computes_narrower(method: MethodSpec) -> bool:
    """Return whether the forward pass is in bf16 although the weights are in fp32: full fine-tuning with 16 bits."""
    return METHODS.lookup(method.name).trains_all_weights and method.bits == 16
