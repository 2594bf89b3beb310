"""Prefix tuning (Li and Liang 2021): train keys and values of virtual tokens in every layer of the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from petransfer.errors import UserError
from petransfer.recipe.methods import VIRTUAL_TOKEN_KEYS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and a trainable prefix in the decoder's self-attention."""
    from peft import PrefixTuningConfig

    from petransfer.methods.shared.attach import attach_adapter, task_type

    config = PrefixTuningConfig(
        task_type=task_type(loaded), num_virtual_tokens=method.virtual_tokens, **_decoder_shape(loaded.model.config)
    )
    return attach_adapter(loaded, method, config, seed)


def _decoder_shape(config: Any) -> dict[str, int]:
    """Return peft's arguments for the size of an encoder-decoder's decoder. Empty for a decoder-only model."""
    if not config.is_encoder_decoder:
        return {}
    if not hasattr(config, "d_model"):
        raise UserError(f"prefix: prefix tuning is not available for {config.model_type}; use lora or prompt")
    # without these arguments, peft would use the encoder's number of layers, and `d_model` as the width of the heads
    heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    width = getattr(config, "d_kv", None) or config.d_model // heads
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None)
    return {"num_layers": layers or config.num_layers, "num_attention_heads": heads, "token_dim": heads * width}


METHOD = Method(
    name="prefix",
    title="prefix tuning",
    source="Li and Liang 2021",
    apply=apply,
    learning_rate_factor=10,  # as in peft's examples
    nano_learning_rate_factor=150,
    keys=VIRTUAL_TOKEN_KEYS,
    size="virtual_tokens",
    peft_type="PREFIX_TUNING",
    virtual_tokens_before="target",
    not_merged="its virtual tokens are not part of the weights; use the adapter together with its base",
    not_stacked="its virtual tokens change the attention of the base model",
)
