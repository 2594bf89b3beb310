"""The rank, or number of virtual tokens, that trains nearest to a number of parameters.

It is no part of a run's id: it follows from `match_parameters`, which is, and the checkpoint's configuration. It is
found on the meta device by making the method itself, so that what is counted is what is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from petransfer.errors import UserError
from petransfer.models.loading import Loaded
from petransfer.recipe.method_forms import FORMS
from petransfer.recipe.run_spec import MethodSpec

# The nearest count may be so far away, as a share of the one asked for.
APART, LARGEST = 0.1, 65_536


def sized(
    loaded: Loaded, method: MethodSpec, apply: Callable[[Loaded, MethodSpec, int], torch.nn.Module]
) -> MethodSpec:
    """The method with its size found; as it is where none is to be.

    Raises:
        UserError: no size comes near.
    """
    wanted, key = method.match_parameters, FORMS[method.name].size
    if not wanted:
        return method
    if not key:
        raise UserError(f"match_parameters: {method.name} has no size to choose")

    def of(size: int) -> MethodSpec:
        alpha = method.alpha or (2.0 * size if key == "rank" and "alpha" in FORMS[method.name].keys else 0.0)
        chosen = {"rank": size} if key == "rank" else {"virtual_tokens": size}
        return replace(method, match_parameters=0, alpha=alpha, **chosen)  # type: ignore[arg-type]

    def count(size: int) -> int:
        model = apply(_without_numbers(loaded), of(size), 0)
        return sum(value.numel() for value in model.parameters() if value.requires_grad)

    one = count(1)
    each = count(2) - one  # every method grows evenly
    size = min(LARGEST, max(1, 1 + round((wanted - one) / each)))
    found = one + (size - 1) * each
    if abs(found - wanted) > APART * wanted:
        noun = key.replace("_", " ")
        raise UserError(
            f"match_parameters: {wanted:,} cannot be met by {method.name}: the nearest is {found:,}, with {noun} {size}"
            f"; each more trains {each:,}"
        )
    return of(size)


def _without_numbers(loaded: Loaded) -> Loaded:
    with torch.device("meta"):
        model = type(loaded.model)(copy.deepcopy(loaded.model.config))
    return replace(loaded, model=model.requires_grad_(False))
