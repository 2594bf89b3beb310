"""Prefix tuning (Li and Liang 2021): keys and values of virtual tokens in every layer of the decoder."""

from __future__ import annotations

from typing import Any

import torch
from peft import PrefixTuningConfig

from petransfer.methods.common import put, task_type
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model with frozen weights and a prefix that its decoder's own attention sees. peft gives the encoder none."""
    config = PrefixTuningConfig(
        task_type=task_type(loaded), num_virtual_tokens=method.virtual_tokens, **_shape(loaded.model.config)
    )
    return put(loaded, method, config, seed)


def _shape(config: Any) -> dict[str, int]:
    """The decoder's: peft looks at the encoder's depth, and takes d_model for the width of all heads."""
    if not config.is_encoder_decoder:
        return {}
    heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    width = getattr(config, "d_kv", None) or config.d_model // heads
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None)
    return {"num_layers": layers or config.num_layers, "num_attention_heads": heads, "token_dim": heads * width}
