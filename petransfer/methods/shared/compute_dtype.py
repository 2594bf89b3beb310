"""Keep trained tensors in fp32, but compute with them in the base model's dtype, as in mixed-precision training.

This saves memory. Without it, peft converts the input of every adapter to fp32 and keeps the copy for the
backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional


def compute_as_in_training(model: Any, bits: int) -> None:
    """Make a peft model compute in the base model's dtype.

    Call this function again after adding another adapter. With 32 bits, the dtype is not changed.
    """
    if bits == 32:
        return
    for module in model.modules():
        if isinstance(module, LNTuningLayer):
            for layer in module.ln_tuning_layers.values():
                hold_in_fp32(layer, ("weight", "bias"))
        elif isinstance(module, BaseTunerLayer):
            _use_input_dtype(module)


class _InputDtypeLinear(torch.nn.Linear):
    """A linear layer with an fp32 weight that computes in the dtype of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight.to(input.dtype))


def _use_input_dtype(module: BaseTunerLayer) -> None:
    """Make the matrices of a LoRA layer compute in the dtype of their input."""
    # peft computes the layers of DoRA and of other methods in fp32
    if not isinstance(module, LoraLayer) or len(module.lora_magnitude_vector):
        return
    module.cast_input_dtype_enabled = False
    for matrices in (module.lora_A, module.lora_B):
        for name, matrix in matrices.items():
            if type(matrix) is torch.nn.Linear and matrix.bias is None:
                narrow = _InputDtypeLinear(matrix.in_features, matrix.out_features, bias=False, device="meta")
                narrow.weight = matrix.weight
                matrices[name] = narrow


def hold_in_fp32(module: torch.nn.Module, names: Iterable[str], dtype: torch.dtype = torch.bfloat16) -> None:
    """Keep some parameters of a module in fp32, but use them in `dtype` in the forward pass.

    Unknown names in `names` are ignored.
    """
    held = [name for name in names if module._parameters.get(name) is not None]
    for name in held:
        module._parameters[name].data = module._parameters[name].data.float()  # type: ignore[union-attr]
    if held and "_held_in_fp32" not in module.__dict__:
        module.__dict__["_held_in_fp32"] = tuple(held)
        # in the forward pass, a copy in `dtype` hides the parameter, as in `torch.nn.utils.weight_norm`
        module.register_forward_pre_hook(functools.partial(_hide_parameters, dtype=dtype))
        module.register_forward_hook(_show_parameters, always_call=True)


def _hide_parameters(module: torch.nn.Module, _: Any, *, dtype: torch.dtype) -> None:
    """Before a forward pass, let copies in `dtype` hide the fp32 parameters as attributes of the module."""
    for name in module.__dict__["_held_in_fp32"]:
        module.__dict__[name] = module._parameters[name].to(dtype)  # type: ignore[union-attr]


def _show_parameters(module: torch.nn.Module, *_: Any) -> None:
    """After a forward pass, remove the copies that hide the fp32 parameters."""
    for name in module.__dict__["_held_in_fp32"]:
        module.__dict__.pop(name, None)
