"""Make a checkpoint's model on the meta device: its tensors have the shapes and dtypes of training, but no values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from petransfer.data.encoding import Layout
from petransfer.methods import virtual_tokens, weights_bits
from petransfer.models.checkpoint_files import wrong_configuration
from petransfer.models.control_arms import randomly_initialized
from petransfer.models.lengths import VirtualTokens
from petransfer.models.loading import DTYPES, Loaded
from petransfer.models.quantization import quantization_config, refuse_poorly_quantized, require_bitsandbytes
from petransfer.models.support import supported_class
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import Bits, MethodSpec


def virtual_tokens_of(config: Any, name: str, method: MethodSpec, own_head: bool) -> VirtualTokens:
    """Return the numbers of virtual tokens that a method puts before the input and before the target.

    Args:
        name: The checkpoint's name.
        own_head: Whether the output head is untied.
    """
    place = METHODS.lookup(method.name).virtual_tokens_before
    if place and method.match_parameters:
        wide = replace(method, bits=32)
        return virtual_tokens(meta_model(config, name, wide, own_head), wide)
    return VirtualTokens(**{place: method.virtual_tokens}) if place else VirtualTokens()


def meta_model(config: Any, name: str, method: MethodSpec, own_head: bool, new_tokens: tuple[int, ...] = ()) -> Loaded:
    """Return the model of `load_checkpoint` on the meta device, without a tokenizer."""
    auto = supported_class(config, name)
    bits = weights_bits(method)
    try:
        with torch.device("meta"):
            model = randomly_initialized(auto, config, own_head).to(DTYPES.get(bits, torch.bfloat16))
    except Exception as error:  # the code of each architecture reads its own values, and any of it can fail
        raise wrong_configuration(name, error) from error
    if bits in (4, 8):
        _quantize(model, bits, method.keep_wide)
        refuse_poorly_quantized(model, name, bits, method.keep_wide)
    layout = Layout(bool(config.is_encoder_decoder), 0, 1)
    return Loaded(model.requires_grad_(False), None, layout, None, new_tokens)


def _quantize(model: PreTrainedModel, bits: Bits, keep_wide: Sequence[str]) -> None:
    require_bitsandbytes(bits)
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    replace_with_bnb_linear(model, [*get_keys_to_not_convert(model), *keep_wide], quantization_config(bits))
    import bitsandbytes as bnb

    # bitsandbytes caches its first quantisation map for all later calls, so it must not be made on the meta device.
    bnb.functional.name2qmap.setdefault("dynamic", bnb.functional.create_dynamic_map())
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            wide = torch.empty(module.out_features, module.in_features, dtype=torch.bfloat16, device="meta")
            kind = bnb.nn.Params4bit if bits == 4 else bnb.nn.Int8Params
            module.weight = kind(wide, requires_grad=False, **module.weight.__dict__)._quantize("meta")
            if module.bias is not None:
                module.bias = torch.nn.Parameter(module.bias.to(torch.bfloat16), requires_grad=False)
            if bits == 8:  # 0 turns off the search for outliers, which needs the values of the activations
                module.state.threshold = 0.0
