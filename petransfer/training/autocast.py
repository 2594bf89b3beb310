"""Compute a model's forward pass in bf16 while its weights stay in fp32."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32


def autocast_forward(model: Any, device: torch.device, autocast: Callable[[Any], Any] | None = None) -> None:
    """Make a model's forward pass compute in bf16 and return fp32, in training and in evaluation.

    Args:
        autocast: Decorator of the forward method, in place of `torch.autocast` for `device`.
    """
    decorate = autocast or torch.autocast(device.type, torch.bfloat16)
    narrow = decorate(type(model).forward)
    model.forward = MethodType(convert_outputs_to_fp32(narrow), model)
    model.computes_in_bf16 = True


def is_autocast(model: torch.nn.Module) -> bool:
    """Return whether `autocast_forward` was called on a model, so that its weights do not tell its precision."""
    return getattr(model, "computes_in_bf16", False)
