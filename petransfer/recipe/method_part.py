"""The schema of one training method in a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from petransfer.errors import UserError
from petransfer.recipe.layer_patterns import check_pattern
from petransfer.recipe.methods import COMMON_KEYS, METHODS, Method
from petransfer.recipe.run_spec import Bits, Embeddings, MethodSpec, Options, OptionValue, RateScaling, unused_keep_wide
from petransfer.recipe.values import Name, Real, Strict, Whole

LARGEST_RANK = 4096
# The error type that pydantic reports for an unknown key of a method.
UNKNOWN_KEY = "unknown_key"


class MethodPart(Strict):
    """A training method. Each method accepts only some of these keys, and can have additional options.

    The method's file in petransfer/methods declares the accepted keys and the options.

    name: name of the method, such as `lora` or `full`.
    rank: rank of LoRA and similar methods.
    alpha: LoRA's alpha. Default: twice the rank.
    dropout: dropout on the inputs of the adapter.
    targets: the adapted linear layers: `all-linear`, a regular expression for whole names, or endings of layer names.
    layers: numbers of the adapted layers in encoder and decoder, counted from 0. Default: all.
    embeddings: which rows of the embedding matrix are trained. `frozen`: no rows. `new`: the rows of tokens that occur
        in the training data but were not trained in pretraining. `used`: the rows of all tokens that occur in the
        training data. `trained`: all rows.
    virtual_tokens: number of trained vectors of prompt tuning and prefix tuning.
    rate_ratio: for LoRA+, the learning rate of matrix B divided by the learning rate of matrix A.
    match_parameters: approximate number of parameters to train. It determines the rank or the number of virtual tokens
        for each checkpoint.
    bits: bits of each frozen weight. With full fine-tuning, bits of the trained weights.
    keep_wide: endings of the names of layers that are not quantised.
    rate_scaling: with `rms`, each tensor's learning rate is multiplied by the root mean square of the tensor's weights.
    """

    model_config = ConfigDict(extra="allow")  # further keys can be options that only one method has

    name: Name
    rank: Annotated[Whole, Field(ge=1, le=LARGEST_RANK)] = 16
    alpha: Annotated[Real, Field(gt=0)] | None = None
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    targets: str | Annotated[list[Name], Field(max_length=10_000)] = "all-linear"
    layers: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(max_length=10_000)] = []
    embeddings: Embeddings = "frozen"
    virtual_tokens: Annotated[Whole, Field(ge=1, le=4096)] = 20
    rate_ratio: Annotated[Real, Field(gt=0, le=1000)] = 16.0
    match_parameters: Annotated[Whole, Field(ge=1, le=10**12)] | None = None
    bits: Bits = 16
    keep_wide: Annotated[list[Name], Field(max_length=10_000)] = []
    rate_scaling: RateScaling = "none"

    @property
    def declared(self) -> Method:
        """The `Method` in the method's file."""
        return METHODS.lookup(self.name)

    @property
    def options(self) -> dict[str, OptionValue]:
        """The values of the method's additional options. Default: the values in the method's file."""
        given = self.model_extra or {}
        return {key: given.get(key, option.default) for key, option in self.declared.options.items()}

    @property
    def label(self) -> str:
        """The name in tables: method, size, a word for every setting that is not the default, and bits."""
        wide = f" but {' '.join(self.keep_wide)}" if self.keep_wide else ""
        return " ".join([self.name, *self._words(), f"{self.bits}-bit"]) + wide

    def _words(self) -> list[str]:
        size = self.declared.size
        if self.declared.trains_all_weights:
            return []
        sized = f"r{self.rank}" if size == "rank" else f"{self.virtual_tokens}-tokens" if size else ""
        targets = self.targets if isinstance(self.targets, str) else ",".join(self.targets)
        words = {
            f"~{self.match_parameters}" if self.match_parameters else sized: bool(size),
            f"{self.embeddings}-embeddings": self.embeddings != "frozen",
            f"alpha{self.alpha or 0:g}": self.alpha not in (None, 2 * self.rank),
            f"dropout{self.dropout:g}": self.dropout > 0,
            f"ratio{self.rate_ratio:g}": self.rate_ratio != 16,
            f"on-{targets}": targets != "all-linear",
            f"layers-{','.join(map(str, self.layers))}": bool(self.layers),
            "rms-rates": self.rate_scaling == "rms",
        }
        defaults = self.declared.options
        own = [f"{key}-{value}" for key, value in self.options.items() if value != defaults[key].default]
        return [word for word, shown in words.items() if shown] + own

    @model_validator(mode="after")
    def _known_method(self) -> MethodPart:
        try:
            declared = METHODS.lookup(self.name)
        except UserError as error:
            raise ValueError(str(error)) from None
        for key, value in (self.model_extra or {}).items():
            if key not in declared.options:
                known = sorted(type(self).model_fields.keys() | declared.options.keys())
                raise PydanticCustomError(UNKNOWN_KEY, "unknown key", {"key": key, "known": known})
            # store the value with the option's type: a whole number becomes a float if the option is a float
            (self.model_extra or {})[key] = declared.options[key].checked(key, value)
        return self

    @model_validator(mode="after")
    def _possible_bits(self) -> MethodPart:
        declared = self.declared
        if declared.trains_all_weights and self.bits < 16:
            raise ValueError(f"full fine-tuning cannot train {self.bits}-bit weights; use 16 or 32 bits, or lora")
        if self.bits in declared.unsupported_bits:
            reason = declared.unsupported_bits[self.bits]
            raise ValueError(f"{self.name} does not support a base model with {self.bits} bits: {reason}")
        if self.keep_wide and self.bits > 8:
            raise ValueError(unused_keep_wide(self.bits))
        return self

    @model_validator(mode="after")
    def _valid_targets(self) -> MethodPart:
        if isinstance(self.targets, str) and self.targets != "all-linear":
            check_pattern(self.targets)
        if not self.targets:
            raise ValueError("targets is empty; name layers, or use all-linear")
        return self

    @model_validator(mode="after")
    def _only_its_own_keys(self) -> MethodPart:
        """Refuse keys that this method does not accept."""
        declared = self.declared
        # a user can change any method in a recipe to `full`, which ignores the keys of other methods
        if declared.trains_all_weights:
            return self
        fields = type(self).model_fields
        for key, field in fields.items():
            if key not in declared.keys | COMMON_KEYS and getattr(self, key) != field.default:
                raise ValueError(declared.does_not_take(key))
        size = declared.size
        if self.match_parameters and size and getattr(self, size) != fields[size].default:
            raise ValueError(f"give either {size} or match_parameters, which sets {size}")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers: a number is given twice")
        return self


def method_of(part: MethodPart) -> MethodSpec:
    """Return the `MethodSpec` of a recipe's method. Keys that the method does not accept get defaults."""
    declared = part.declared
    given: dict[str, Any] = {"options": Options(part.options)}
    if not declared.trains_all_weights:
        given["keep_wide"] = tuple(part.keep_wide)
    for key in declared.keys - {"alpha", "match_parameters"}:
        value = getattr(part, key)
        given[key] = tuple(value) if isinstance(value, list) else value
    if "rank" in declared.keys and "alpha" in declared.keys:
        given["alpha"] = float(2 * part.rank if part.alpha is None else part.alpha)
    if part.match_parameters and declared.size:
        given |= {declared.size: 0, "match_parameters": part.match_parameters}
        given |= {"alpha": 0.0} if "alpha" in given and part.alpha is None else {}
    return MethodSpec(part.name, part.bits, **given)
