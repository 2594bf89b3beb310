"""Choose the linear layers of a model that a method is applied to."""

from __future__ import annotations

import re
from collections.abc import Iterable

from petransfer.errors import UserError
from petransfer.models.loading import Loaded
from petransfer.models.text_part import has_other_inputs, linear_layers, text_linear_layers
from petransfer.recipe.run_spec import MethodSpec

# One or several names of layers in one text, separated by commas or spaces.
_NAMES = re.compile(r"[\w.]+([ ,]+[\w.]+)*")


def target_layers(loaded: Loaded, method: MethodSpec, default: Iterable[str] | None = None) -> str | list[str]:
    """Return the layers that a method is applied to, as a value for peft's `target_modules`.

    Args:
        method: The method. Its `targets` and `layers` (numbers of layers, empty for all) select the linear layers.
        default: Endings of layer names for `all-linear`. None: all linear layers except the output head.

    Returns:
        `all-linear`, a regular expression, or a list of layer names or their endings.

    Raises:
        UserError: `layers` has a number that the model lacks, or `targets` matches no layer.
    """
    asked = names_or_pattern(loaded, method.targets)
    if asked == "all-linear" and default is not None:
        asked = list(default)
    # layers for images or audio, routers of experts, and layers whose weights are read directly are never adapted
    linear = text_linear_layers(loaded.model)
    if not method.layers and not has_other_inputs(loaded.model) and len(linear) == len(linear_layers(loaded.model)):
        return asked
    if not method.layers:
        chosen = [name for name in linear if matches(name, asked)]
        if not chosen:
            raise UserError(f"targets: {asked!r} matches no linear layer that processes text")
        return chosen
    numbers = {name: number for name in linear if (number := _layer_number(name)) is not None}
    missing = sorted(set(method.layers) - set(numbers.values()))
    if missing:
        last = max(numbers.values(), default=0)
        raise UserError(f"layers: the model has no layer {missing[0]}; its layers are 0 to {last}")
    chosen = [name for name, number in numbers.items() if number in method.layers and matches(name, asked)]
    if not chosen:
        raise UserError(f"targets: {asked!r} matches no linear layer in layers {', '.join(map(str, method.layers))}")
    return chosen


def names_or_pattern(loaded: Loaded, targets: str | tuple[str, ...]) -> str | list[str]:
    """Return `targets` as a list of layer names or a pattern. A text such as `q_proj` or `q, v` is a list of names."""
    if not isinstance(targets, str):
        return list(targets)
    is_pattern = any(re.fullmatch(targets, name) for name, _ in loaded.model.named_modules())
    if targets == "all-linear" or is_pattern or not _NAMES.fullmatch(targets):
        return targets
    return targets.replace(",", " ").split()


def _layer_number(name: str) -> int | None:
    """Return the first number in a layer's name: 3 in `encoder.block.3.layer.0.SelfAttention.q`."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def matches(name: str, asked: str | list[str]) -> bool:
    """Return whether a layer's name matches a pattern, or is or ends in one of several names."""
    if asked == "all-linear":
        return True
    if isinstance(asked, str):
        return re.fullmatch(asked, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in asked)
