"""Rotary position embeddings: how scaling extends a model's positions, and which rows can share a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from petransfer.models.text_part import text_config

# Kinds of rotary embeddings that transformers computes anew from the largest position in a batch.
_CHANGING = {"longrope", "dynamic"}
# Kinds of scaling that extend the positions of the pretraining by a factor. For other kinds, config.json has the
# extended number.
_BY_FACTOR = {"linear", "dynamic", "yarn"}


def scaled_positions(config: Any) -> int | None:
    """Return the number of positions of a model, including positions that the scaling of rotary embeddings adds.

    None: config.json has no `max_position_embeddings`.

    `max_position_embeddings` in config.json can be the number before scaling, as in the model cards of Qwen2.5 (YaRN).
    """
    config = text_config(config)
    own = getattr(config, "max_position_embeddings", None)
    return min((_scaled(one, int(own)) for one in _by_layer(config)), default=int(own)) if own else None


def _scaled(parameters: dict[str, Any], own: int) -> int:
    factor, kind = parameters.get("factor"), parameters.get("rope_type")
    if kind not in _BY_FACTOR or not isinstance(factor, int | float):
        return own
    before = parameters.get("original_max_position_embeddings") if kind == "yarn" else None
    return max(own, int(factor * (before or own)))


def longest_shared_length(config: Any) -> int | None:
    """Return the number of positions up to which rows of several lengths can share a batch. None: any number.

    A longer row changes the rotary embeddings of the other rows in its batch, and so their texts and scores.
    """
    config = text_config(config)
    limits = [
        int(one.get("original_max_position_embeddings") or config.max_position_embeddings)
        for one in _by_layer(config)
        if one.get("rope_type") in _CHANGING
    ]
    return min(limits, default=None)


def change_while_generated(config: Any, input_tokens: int, target_tokens: int) -> bool:
    """Return whether the rotary embeddings of a row's first tokens differ between generation and one forward pass."""
    limit, whole = longest_shared_length(config), input_tokens + target_tokens
    if limit is None or whole <= limit:
        return False
    # the kind `longrope` has two sets of frequencies, and a long input has the second one from the start
    is_dynamic = any(one.get("rope_type") == "dynamic" for one in _by_layer(text_config(config)))
    return is_dynamic or input_tokens <= limit


def _by_layer(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of the rotary embeddings of each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [value for value in parameters.values() if isinstance(value, dict)] or [parameters]


def reset_dynamic_frequencies(model: Any) -> None:
    """Make rotary embeddings of the kind `dynamic` depend on the rows of each forward pass alone.

    After a long row, transformers changes the frequencies and would also use them for the following batches.
    """
    for module in model.modules():
        if getattr(module, "rope_type", "") == "dynamic":
            module.register_forward_pre_hook(_use_original_frequencies)


@contextlib.contextmanager
def forgetting_offsets(model: Any) -> Iterator[None]:
    """Remove the offset of positions that a model keeps after it has generated a text.

    Qwen2-VL and similar models keep it in `rope_deltas`. With virtual tokens, their next forward pass would use it,
    although it belongs to other texts.
    """
    try:
        yield
    finally:
        for module in model.modules():
            if getattr(module, "rope_deltas", None) is not None:
                module.rope_deltas = None


def _use_original_frequencies(module: Any, _arguments: Any) -> None:
    module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
    module.max_seq_len_cached = module.original_max_seq_len
