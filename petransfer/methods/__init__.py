"""Training methods. The file of a method declares everything about it. Importing this package does not import torch.

To add a method, write a file that assigns a `petransfer.recipe.methods.Method` to a name. Put the file into this
package, or into another package that has an entry point in the group `petransfer.methods`. Import torch, peft and
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
    """Apply a training method to the model in `loaded`, in place. Afterwards, only the method's tensors are trainable.

    `seed` determines the random values in new tensors.

    Raises:
        UserError: The method cannot be applied to this model.
    """
    model: torch.nn.Module = METHODS.lookup(method.name).apply(loaded, with_size(loaded, method), seed)
    return model


def save_method(name: str, model: torch.nn.Module, folder: Path, base: str) -> None:
    """Save a trained adapter; the method `full` saves the whole model. `base` is the name of the base model."""
    from petransfer.methods.shared.saving import save_adapter

    save = METHODS.lookup(name).save or save_adapter
    save(model, folder, base)


def with_size(loaded: Loaded, method: MethodSpec) -> MethodSpec:
    """Return the method with the rank or number of virtual tokens that trains about `match_parameters` parameters."""
    from petransfer.methods.shared.parameter_matching import with_matched_size

    return with_matched_size(loaded, method, METHODS.lookup(method.name).apply)


def virtual_tokens(loaded: Loaded, method: MethodSpec) -> VirtualTokens:
    """Return the numbers of virtual tokens that a method puts before the input and before the target."""
    from petransfer.models.lengths import VirtualTokens

    place = METHODS.lookup(method.name).virtual_tokens_before
    return VirtualTokens(**{place: with_size(loaded, method).virtual_tokens}) if place else VirtualTokens()


def weights_bits(method: MethodSpec) -> Bits:
    """Return the bits per weight of the base model. A method that trains all weights uses 32."""
    return 32 if METHODS.lookup(method.name).trains_all_weights else method.bits


def computes_in_bf16(method: MethodSpec) -> bool:
    """Return whether the forward pass computes in bf16 with fp32 weights, as in full fine-tuning with `bits: 16`."""
    return METHODS.lookup(method.name).trains_all_weights and method.bits == 16
