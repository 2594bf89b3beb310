"""Make models with the shape of a registered checkpoint and random weights. No weights are read or downloaded."""

from __future__ import annotations

from typing import Any

import torch

from petransfer.data.encoding import Layout
from petransfer.memory.meta_model import meta_model
from petransfer.models.architecture import configuration
from petransfer.models.loading import Loaded
from petransfer.models.quantization import keep_default_packing
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec


def random_model(name: str, method: MethodSpec, device: torch.device, layers: int | None = None) -> Loaded:
    """Return a checkpoint's architecture with random weights in the method's bits, on `device`, without a tokenizer.

    Args:
        name: A hub id of the registry, such as `google-t5/t5-3b`; only its shape is used.
        method: Its bits determine how the weights are stored. Linear layers are quantised one at a time on the device.
        device: The device on which the model is made. It needs memory for the result and one layer in bf16.
        layers: Number of layers of the encoder and of the decoder; None for as many as the checkpoint has.
    """
    config, own_head = shape_of(name, layers)
    loaded = meta_model(config, name, method, own_head)
    made: dict[int, torch.nn.Parameter] = {}
    generator = torch.Generator(device).manual_seed(0)
    for module in loaded.model.modules():
        for key, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[key] = _made(module, value, made, device, generator)
        for key, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = torch.zeros_like(buffer, device=device)
        if hasattr(module, "quant_state"):
            module.quant_state = module.weight.quant_state
        if type(module).__name__ == "Linear8bitLt":
            module.state.threshold = 6.0  # the value that transformers sets; the planner's model has 0
    keep_default_packing(loaded.model)
    layout = Layout(bool(config.is_encoder_decoder), 0, 1, 0)
    return Loaded(loaded.model, loaded.tokenizer, layout, None, ())


def shape_of(name: str, layers: int | None = None) -> tuple[Any, bool]:
    """Return a registered checkpoint's configuration, and whether its output head is separate from its embeddings.

    layers: number of layers of the encoder and of the decoder; None for as many as the checkpoint has.
    """
    config, own_head = configuration(checkpoint_spec(name))
    if layers:
        for field in ("num_layers", "num_decoder_layers", "num_hidden_layers", "n_layer"):
            if getattr(config, field, None) is not None:
                setattr(config, field, layers)
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    return config, own_head


def _made(
    module: torch.nn.Module,
    value: torch.nn.Parameter,
    made: dict[int, torch.nn.Parameter],
    device: torch.device,
    generator: torch.Generator,
) -> torch.nn.Parameter:
    """Return a parameter with random numbers that replaces a parameter on the meta device.

    Tied parameters stay tied. made: the parameters that were made so far, by the id of the parameter they replace.
    """
    if id(value) not in made:
        kind = type(value)
        if kind.__name__ in ("Params4bit", "Int8Params"):
            linear: Any = module
            shape, dtype = (linear.out_features, linear.in_features), torch.bfloat16
            wide = torch.randn(shape, device=device, dtype=dtype, generator=generator).mul_(shape[1] ** -0.5)
            made[id(value)] = kind(wide, **_settings_of(value))._quantize(device)
        else:
            new = torch.ones(value.shape, dtype=value.dtype, device=device)
            if value.dim() > 1:
                new.normal_(std=value.shape[1] ** -0.5, generator=generator)
            made[id(value)] = torch.nn.Parameter(new, requires_grad=False)
    return made[id(value)]


def _settings_of(value: Any) -> dict[str, Any]:
    """Return the arguments with which a quantised parameter was made, without the state that quantising added."""
    names = ("blocksize", "compress_statistics", "quant_type", "quant_storage", "has_fp16_weights")
    return {"requires_grad": False} | {name: getattr(value, name) for name in names if hasattr(value, name)}
