"""Compute in bf16 on the meta device as in `torch.autocast`, which has no effect on meta tensors.

Full fine-tuning at 16 bits trains in autocast. Autocast keeps a bf16 copy of the weight of each linear layer until the
backward pass has reached the layer.
"""

from __future__ import annotations

from contextlib import ContextDecorator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# Operations of language models that autocast computes in bf16 (`_NARROW`), and in fp32 on a card (`_WIDE_ON_A_CARD`).
# Source: aten/src/ATen/autocast_mode.h.
_NARROW = frozenset(
    {
        *("linear", "matmul", "__matmul__", "mm", "mv", "bmm", "addmm", "addbmm", "baddbmm", "einsum", "conv1d"),
        "scaled_dot_product_attention",
    }
)
_WIDE_ON_A_CARD = frozenset(
    {
        *("pow", "__pow__", "exp", "log", "log1p", "reciprocal", "rsqrt", "softplus", "softmax", "log_softmax"),
        *("logsumexp", "layer_norm", "group_norm", "rms_norm", "cumsum", "cumprod", "prod", "sum", "norm"),
    }
)


class MetaAutocast(TorchFunctionMode, ContextDecorator):
    """A context in which operations on meta tensors use and keep tensors of the same dtypes as in bf16 autocast.

    Args:
        device: The simulated device, `cuda` or `cpu`.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._wide = _WIDE_ON_A_CARD if device == "cuda" else frozenset[str]()
        self._copies: dict[torch.Tensor, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _NARROW:
            args, kwargs = tree_map(self._narrow, (args, kwargs))
        elif name in self._wide:
            args, kwargs = tree_map(_widen, (args, kwargs))
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        self._copies.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _narrow(self, value: Any) -> Any:
        """Return a bf16 copy of an fp32 tensor. Each trained tensor has a single copy, which the context keeps."""
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not (value.requires_grad and value.is_leaf):
            return value.to(torch.bfloat16)
        if value not in self._copies:
            self._copies[value] = value.to(torch.bfloat16)
        return self._copies[value]


def _widen(value: Any) -> Any:
    is_narrow = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_narrow else value
