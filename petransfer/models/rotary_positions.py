"""Rotary position embeddings that depend on the length of the longest row of a batch."""

from __future__ import annotations

from typing import Any

from petransfer.models.text_part import text_config

# Kinds of rotary embeddings that transformers computes anew from the largest position in a batch.
_CHANGING = {"longrope", "dynamic"}


def longest_shared_length(config: Any) -> int | None:
    """Return the number of positions up to which rows of several lengths can share a batch. None: any number.

    A longer row changes the rotary embeddings of the other rows in its batch, and so their texts and scores.
    """
    config = text_config(config)
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    limits = [
        int(one.get("original_max_position_embeddings") or config.max_position_embeddings)
        for one in by_layer
        if one.get("rope_type") in _CHANGING
    ]
    return min(limits, default=None)


def forget_longer_rows(model: Any) -> None:
    """Reset the frequencies of rotary embeddings of the kind `dynamic` to their initial values.

    After a long row, transformers changes these frequencies and would also use them for the next batch.
    """
    for module in model.modules():
        original = getattr(module, "original_inv_freq", None)
        if original is not None and getattr(module, "rope_type", "") == "dynamic":
            module.inv_freq = original.to(module.inv_freq.device)
            module.max_seq_len_cached = module.original_max_seq_len
