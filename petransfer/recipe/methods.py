"""The declaration of a training method, and the registry of all methods. Imports no torch.

Each file in `petransfer/methods/` declares one method by assigning a `Method`; other packages declare theirs with
entry points of the group `petransfer.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    """An option that only one method has. A recipe sets it as a key of the method.

    Args:
        default: the value if a recipe does not set the key. Its type is the type of the option.
        meaning: one sentence that says what the option does; it is shown in the documentation.
        minimum: the smallest allowed value of a number; None for no limit.
        maximum: the largest allowed value of a number; None for no limit.
        choices: the allowed values; empty if they are not a fixed list.
    """

    default: OptionValue
    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[OptionValue, ...] = ()

    def checked(self, name: str, value: Any) -> OptionValue:
        """Convert a recipe's value to the option's type.

        Raises:
            ValueError: the value has the wrong type, is too small or too large, or is not among the choices.
        """
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r:.40}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, self.choices))}, not {value!r:.40}")
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
        name: the name in recipes.
        title: the name in texts for readers, such as `LoRA`.
        source: the paper, as `Author et al. year`.
        apply: a function of `(loaded, method, seed)` that returns the model to train. In this model, only the tensors
            that the method trains require gradients, and these tensors are in fp32.
        learning_rate_factor: the method's default learning rate divided by LoRA's, for pretrained models.
        nano_learning_rate_factor: the value of `learning_rate_factor` for the embedded family `nano`.
        keys: the recipe keys that the method accepts, in addition to COMMON_KEYS.
        options: the options that only this method has, by their keys in a recipe.
        size: the key that determines the number of trained parameters. If a recipe sets `match_parameters`, the value
            of this key is computed. Empty if there is no such key.
        peft_type: peft's name for the method's adapters; empty if the method saves a whole model.
        save: a function of `(model, folder, base)` that saves the adapter; None saves the active adapter with peft.
        trains_all_weights: whether the method trains the base model itself, which is then loaded in fp32 and saved
            as a whole.
        virtual_tokens_before: the place of the method's virtual tokens. `input`: before the model's input. `target`:
            before the keys and values of the decoder's self-attention. Empty if there are none.
        unsupported_bits: bits of the base model that the method does not support, each with the reason.
        not_merged: why an adapter cannot be merged into the base model's weights; empty if it can.
        not_stacked: why several adapters cannot be trained at once on one base model; empty if they can.
        not_split: bits of the base model at which FSDP cannot split the model's tensors, each with the reason.
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
        takes = ", ".join(sorted(self.keys | self.options.keys())) or "nothing but bits"
        return f"{key} does not belong to {self.name}, which takes {takes}"


METHODS: Registry[Method] = Registry("method", Method, "petransfer.methods", "petransfer.methods")
"""All methods by name: those of `petransfer/methods/` and those of other packages."""
