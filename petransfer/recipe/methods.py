"""The declaration of a training method, and the registry of all methods. This module does not import torch.

A file in `petransfer/methods/` declares a method by assigning a `Method`. Another package declares a method with an
entry point of the group `petransfer.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from petransfer.plurals import listed
from petransfer.recipe.run_spec import MethodSpec, OptionValue
from petransfer.registries import Registry

Size = Literal["rank", "virtual_tokens", ""]

# Keys that every method accepts in a recipe.
COMMON_KEYS = frozenset({"name", "bits", "keep_wide", "rate_scaling"})
# Keys that are accepted by, in this order: methods for selected layers, LoRA and its variants, methods with virtual
# tokens.
LAYER_KEYS = frozenset({"targets", "layers"})
LORA_KEYS = LAYER_KEYS | {"rank", "alpha", "dropout", "embeddings", "match_parameters"}
VIRTUAL_TOKEN_KEYS = frozenset({"virtual_tokens", "match_parameters"})

# Why FSDP cannot train methods with 32-bit tensors inside the base model's own layers.
NO_FSDP_AT_16_BITS = "it holds 32-bit tensors in 16-bit layers, which FSDP cannot split; use bits: 32"


@dataclass(frozen=True)
class Option:
    """An option of one method. A recipe sets the option as a key of the method.

    Args:
        default: Value if a recipe does not set the key. Its type is the type of the option.
        meaning: One sentence that says what the option does, for the documentation.
        minimum: Smallest allowed value of a number. None: no limit.
        maximum: Largest allowed value of a number. None: no limit.
        choices: Allowed values. Empty: not a fixed list.
    """

    default: OptionValue
    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[OptionValue, ...] = ()

    def checked(self, name: str, value: Any) -> OptionValue:
        """Convert a recipe's value to the option's type. A wrong value raises ValueError."""
        kind = type(self.default)
        if kind is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
        if type(value) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r:.40}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, self.choices))}, not {value!r:.40}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}")
        if isinstance(value, int | float):
            low, high = self.minimum, self.maximum
            if (low is not None and value < low) or (high is not None and value > high):
                raise ValueError(f"{name} must be from {low} to {high}, not {value!r:.40}")
        found: OptionValue = value
        return found


@dataclass(frozen=True)
class Method:
    """A training method: which weights are trained, and how they are saved.

    Args:
        name: Name in recipes.
        title: Name in texts for readers, such as `LoRA`.
        source: The paper, as `Author et al. year`.
        apply: Function of `(loaded, method, seed)` that returns the model to train. Only the trained tensors require
            gradients. Trained tensors are in fp32.
        learning_rate_factor: Default learning rate divided by LoRA's learning rate, for pretrained models.
        nano_learning_rate_factor: Value of `learning_rate_factor` for the family `nano`.
        keys: Recipe keys that the method accepts, in addition to COMMON_KEYS.
        options: Additional options of this method, by their keys in a recipe.
        size: Key that determines the number of trained parameters; `match_parameters` sets its value. Empty: no such
            key.
        peft_type: Name of the method's adapters in peft. Empty: the method saves a whole model.
        save: Function of `(model, folder, base)` that saves the adapter. None: peft saves the active adapter.
        trains_all_weights: Whether the method trains the base model itself, in fp32, and saves the whole model.
        virtual_tokens_before: Place of the method's virtual tokens. `input`: before the model's input. `target`: before
            the keys and values of the decoder's self-attention. Empty: no virtual tokens.
        unsupported_bits: Bits of the base model that the method does not support, each with the reason.
        not_merged: Why an adapter cannot be merged into the base model's weights. Empty: possible.
        not_stacked: Why several adapters cannot be trained together on one base model. Empty: possible.
        not_split: Bits of the base model at which FSDP cannot split the model's tensors, each with the reason.
    """

    name: str
    title: str
    source: str
    apply: Callable[[Any, MethodSpec, int], Any]
    learning_rate_factor: float = 1.0
    nano_learning_rate_factor: float = 1.0
    keys: frozenset[str] = frozenset()
    options: Mapping[str, Option] = field(default_factory=dict)
    size: Size = ""
    peft_type: str = "LORA"
    save: Callable[[Any, Any, str], None] | None = None
    trains_all_weights: bool = False
    virtual_tokens_before: Literal["input", "target", ""] = ""
    unsupported_bits: Mapping[int, str] = field(default_factory=dict)
    not_merged: str = ""
    not_stacked: str = ""
    not_split: Mapping[int, str] = field(default_factory=dict)

    def does_not_take(self, key: str) -> str:
        """Return the error message for a key that this method does not accept."""
        others = listed(sorted(self.keys | self.options.keys()))
        settings = f"its settings are {others}" if others else "its only setting is bits"
        return f"the method {self.name} has no {key}; {settings}"


METHODS: Registry[Method] = Registry("method", Method, "petransfer.methods", "petransfer.methods")
"""All methods by name: those of `petransfer/methods/` and those of other packages."""
