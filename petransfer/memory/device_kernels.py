"""Make operations on the meta device keep the tensors that a real device keeps for the backward pass.

This is needed to predict the memory. The fused kernels of a card (attention and dropout) and of a CPU (attention) keep
fewer tensors than the formulas of the meta device. bitsandbytes multiplies 8-bit weights on a CPU with another function
than on the meta device.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from petransfer.memory.cards import BF16_CAPABILITY, USUAL_CAPABILITY

# torch's own functions, which stacked training replaces temporarily
_TORCH_DROPOUT, _TORCH_ATTENTION = functional.dropout, functional.scaled_dot_product_attention


class CardKernels(TorchFunctionMode):
    """A context in which attention and dropout keep the tensors that CUDA's fused kernels keep.

    Args:
        capability: The card's compute capability, such as (8, 6).
    """

    def __init__(self, capability: tuple[int, int] = USUAL_CAPABILITY) -> None:
        super().__init__()
        attention = functools.partial(_attention, capability=capability)
        self.functions = {**_ON_A_CARD, "scaled_dot_product_attention": attention}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Compare names, because stacked training replaces torch's dropout by its own function.
        replaced = self.functions.get(getattr(func, "__name__", ""))
        return (replaced or func)(*args, **(kwargs or {}))


class CpuKernels(TorchFunctionMode):
    """A context in which attention keeps the same tensors for the backward pass as the CPU's fused kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if replaced := _ON_A_CPU.get(name):
            return replaced(*args, **(kwargs or {}))
        # Stacked training replaces torch's dropout by a function that calls torch's. It must not be called twice.
        return (_TORCH_DROPOUT if name == "dropout" else func)(*args, **(kwargs or {}))


def multiply_8bit_as_on_cpu(model: torch.nn.Module) -> None:
    """Make LLM.int8 layers multiply as on a CPU, where each product dequantises the weights."""
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            module.forward = functools.partial(_multiply_8bit, module)


def _multiply_8bit(layer: Any, rows: torch.Tensor) -> torch.Tensor:
    from bitsandbytes.autograd._functions import MatMul8bitFp

    layer.state.is_training = layer.training
    if layer.weight.CB is not None:
        layer.init_8bit_state()
    result: torch.Tensor = MatMul8bitFp.apply(rows, layer.weight, None, layer.bias, layer.state)
    return result


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    result: torch.Tensor = _Dropout.apply(input) if training and p > 0 else input  # type: ignore[no-untyped-call]
    return result


class _Dropout(torch.autograd.Function):
    """Simulated dropout that keeps only its mask for the backward pass, one byte per element."""

    @staticmethod
    def forward(ctx: Any, input: Any) -> Any:
        ctx.save_for_backward(torch.empty_like(input, dtype=torch.bool))
        return torch.empty_like(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.empty_like(gradients[0])


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    capability: tuple[int, int] = USUAL_CAPABILITY,
) -> torch.Tensor:
    """Simulate attention on a card, which is one fused kernel if PyTorch has one for the tensors."""
    if not _has_fused_kernel(query, key, value, attn_mask, capability):
        return _attention_in_steps(query, key, value, attn_mask, dropout_p)
    mask = _mask_of_kernel(attn_mask, query.dtype)
    result: torch.Tensor = _Attention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
    return result


def _has_fused_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, capability: tuple[int, int]
) -> bool:
    """Return whether PyTorch uses a fused kernel (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp)."""
    # T5's mask is not contiguous in the last dimension with transformers before 5.20
    if any(tensor.stride(-1) != 1 for tensor in (query, key, value, mask) if tensor is not None):
        return False
    if mask is None and query.element_size() == 2:
        return True  # FlashAttention takes any size of a head, and fewer key heads than query heads
    # Memory-efficient attention reads 16 bytes at once. In fp32, cards before Ampere read one number at once.
    aligned = 16 // query.element_size() if capability >= BF16_CAPABILITY else 1
    same_heads = query.shape[-3] == key.shape[-3]
    return same_heads and query.shape[-1] % aligned == 0 and value.shape[-1] % aligned == 0


def _mask_of_kernel(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return the mask that memory-efficient attention keeps for the backward pass.

    It has the dtype of the queries. If its rows do not begin at multiples of 8 numbers, it is copied to longer rows.
    """
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = mask.to(dtype)
    if all(stride % 8 == 0 for stride in mask.stride()[:-1]):
        return mask
    length = mask.shape[-1]
    return functional.pad(mask, (0, 8 - length % 8))[..., :length]


def _attention_in_steps(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout_p: float
) -> torch.Tensor:
    """Simulate attention without a fused kernel. PyTorch then computes in fp32 and keeps all attention weights."""
    groups = query.shape[-3] // key.shape[-3]
    if groups > 1:
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scale = 1.0  # PyTorch scales queries and keys before the product, which makes copies of both
    weights = (query.float() * scale) @ (key.float() * scale).transpose(-2, -1)
    if mask is not None:
        weights += mask
    weights = _dropout(weights.softmax(-1), dropout_p)
    return (weights @ value.float()).to(query.dtype)


def _attention_on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Simulate the CPU's fused attention, which is used if there is no dropout and the mask is not trained."""
    if dropout_p or (attn_mask is not None and attn_mask.requires_grad):
        return _TORCH_ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    mask = attn_mask.to(query.dtype) if attn_mask is not None else None  # a boolean mask is converted
    return _attention(query, key, value, mask)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
        # the kernels write the heads of a token next to each other, so that joining them needs no copy
        shape = (*query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-1])
        out = torch.empty(shape, dtype=query.dtype, device=query.device).transpose(-3, -2)
        rows = math.ceil(query.shape[-2] / 32) * 32
        sums = torch.empty((*query.shape[:2], rows), dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, mask, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, mask, _, _ = ctx.saved_tensors
        of_mask = torch.empty_like(mask) if mask is not None and ctx.needs_input_grad[3] else None
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_mask


def _grouped_product(
    rows: torch.Tensor, weights: torch.Tensor, *, offs: torch.Tensor | None = None, **_: Any
) -> torch.Tensor:
    """Simulate the product of each row with the weights of its expert, which PyTorch lacks for fp32 on meta tensors."""
    result: torch.Tensor = _GroupedProduct.apply(rows, weights)  # type: ignore[no-untyped-call]
    return result


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Any, weights: Any) -> Any:
        ctx.save_for_backward(rows, weights)
        return rows.new_empty(rows.shape[0], weights.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        kept = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(value) if needed else None for value, needed in kept)


_ON_A_CARD: dict[str, Any] = {"dropout": _dropout, "_grouped_mm": _grouped_product}
_ON_A_CPU: dict[str, Any] = {"scaled_dot_product_attention": _attention_on_cpu, "_grouped_mm": _grouped_product}
