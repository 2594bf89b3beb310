"""Choose the rank, or the number of virtual tokens, that trains nearly a given number of parameters.

Parameters are counted by applying the method to a model on the meta device. In this file, the rank and the number of
virtual tokens are called the size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from petransfer.errors import UserError
from petransfer.models.loading import Loaded
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import MethodSpec

# The largest allowed difference from the requested number of parameters, as a share of this number.
TOLERANCE = 0.1
LARGEST_SIZE = 65_536


def with_matched_size(
    loaded: Loaded, method: MethodSpec, apply: Callable[[Loaded, MethodSpec, int], torch.nn.Module]
) -> MethodSpec:
    """Return the method with the rank or number of virtual tokens that trains nearly `match_parameters` parameters.

    A method without `match_parameters` is returned unchanged.

    Raises:
        UserError: No rank or number of virtual tokens gives nearly this number, or the method has neither of the two.
    """
    wanted, declared = method.match_parameters, METHODS.lookup(method.name)
    key = declared.size
    if not wanted:
        return method
    if not key:
        raise UserError(
            f"match_parameters: {method.name} has neither a rank nor virtual tokens; remove match_parameters"
        )

    def of_size(size: int) -> MethodSpec:
        alpha = method.alpha or (2.0 * size if key == "rank" and "alpha" in declared.keys else 0.0)
        chosen = {"rank": size} if key == "rank" else {"virtual_tokens": size}
        return replace(method, match_parameters=0, alpha=alpha, **chosen)  # type: ignore[arg-type]

    def count(size: int) -> int:
        model = apply(_on_meta_device(loaded), of_size(size), 0)
        return sum(value.numel() for value in model.parameters() if value.requires_grad)

    smallest = count(1)
    step = count(2) - smallest  # the count grows linearly with the size, for every method
    size = min(LARGEST_SIZE, max(1, 1 + round((wanted - smallest) / step)))
    found = smallest + (size - 1) * step
    if abs(found - wanted) > TOLERANCE * wanted:
        nearest, more = (f"rank {size}", "rank") if key == "rank" else (f"virtual_tokens {size}", "virtual token")
        raise UserError(
            f"match_parameters: {method.name} cannot have {wanted:,} parameters; the nearest number is {found:,}, with "
            f"{nearest} (one more {more} adds {step:,})"
        )
    return of_size(size)


def _on_meta_device(loaded: Loaded) -> Loaded:
    """Return the loaded base with a copy of the model that has shapes but no values."""
    with torch.device("meta"):
        model = type(loaded.model)(copy.deepcopy(loaded.model.config))
    return replace(loaded, model=model.requires_grad_(False))
