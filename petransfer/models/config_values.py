"""Refuse values in config.json with which a model cannot be built or cannot process longer texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from transformers.activations import ACT2FN

from petransfer.errors import UserError
from petransfer.models.text_part import text_config

# Keys that are sizes; a model cannot be built if one of them is 0.
_SIZES = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers", "hidden_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim",
    "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim",
    "decoder_ffn_dim", "n_embd", "n_layer", "n_head",
)  # fmt: skip
# Keys that name an activation function.
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn")
# Keys of the small number that a normalisation adds to a variance.
_EPSILONS = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_eps")


def refuse_wrong_values(config: Any, name: str) -> None:
    """Raise UserError for a configuration with which the model cannot compute."""
    for part in (config, text_config(config)):
        for problem in itertools.chain(_wrong_values(part), _wrong_heads(part), _wrong_buckets(part)):
            raise UserError(f"config.json of {name} says {problem}; correct it, or get the checkpoint again")


def _value(part: Any, key: str) -> Any:
    """Return a value of a configuration. None if it is missing, or if it differs between layers, as in Gemma 4."""
    try:
        return getattr(part, key, None)
    except RuntimeError:  # transformers' error for a value that differs between layers
        return None


def _wrong_values(part: Any) -> Iterator[str]:
    for key in _SIZES:
        value = _value(part, key)
        if isinstance(value, int | float | str) and not (isinstance(value, int) and value >= 1):
            yield f"{key}={value!r:.40}; it must be a whole number above 0"
    for key in _ACTIVATIONS:
        value = _value(part, key)
        if isinstance(value, str) and value not in ACT2FN:
            yield f"{key}={value!r:.40}, which transformers does not have"
    for key in _EPSILONS:
        value = _value(part, key)
        if isinstance(value, int | float) and not value >= 0:
            yield f"{key}={value!r}; it must not be negative"


def _wrong_heads(part: Any) -> Iterator[str]:
    """Yield numbers of attention heads that do not fit each other."""
    heads, pairs = _value(part, "num_attention_heads"), _value(part, "num_key_value_heads")
    if isinstance(heads, int) and isinstance(pairs, int) and heads % pairs:
        yield f"num_attention_heads={heads} and num_key_value_heads={pairs}; the second must divide the first"


def _wrong_buckets(part: Any) -> Iterator[str]:
    """Yield the problem of wrong settings of T5's relative positions."""
    buckets = _value(part, "relative_attention_num_buckets")
    furthest = _value(part, "relative_attention_max_distance")
    if not isinstance(buckets, int) or not isinstance(furthest, int):
        return
    # The first half of the buckets are exact distances, the other half grow with the logarithm of the distance. The
    # encoder uses half of the buckets for each direction. Only long distances fail, so a training on short texts does
    # not show the mistake.
    fewest, exact = (4 if part.is_encoder_decoder else 2), buckets // 2
    if buckets < fewest:
        yield f"relative_attention_num_buckets={buckets}; it must be at least {fewest}"
    elif furthest <= exact:
        yield (
            f"relative_attention_max_distance={furthest}; with relative_attention_num_buckets={buckets} it must be "
            f"above {exact}, or longer texts fail"
        )
