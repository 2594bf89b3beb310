"""Compute LoRA pairs (A and B) on a CPU faster than peft.

At 32 bits, a pair is folded into its frozen weight, that is, added to the weight, once a step. At 16, 8 and 4 bits, the
output of the pair is added to the output of the frozen layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.utils.integrations import dequantize_bnb_weight
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from petransfer.models.bitsandbytes_import import import_problem

# Maximum bytes of dequantised weights to keep for a quantised model. The pairs of a larger model are left to peft.
MOST_KEPT = 2**28

# Tensors derived from each frozen weight. Models that share a frozen weight, such as the members of a stack, also share
# the derived tensors. This is safe because only one of these models takes a step at a time.
_DERIVED: MutableMapping[torch.Tensor, WeakValueDictionary[Any, torch.Tensor]] = WeakTensorKeyDictionary()


def derived_tensor(kind: str, weight: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the tensor `kind` that is derived from a frozen weight, such as the dequantised weight.

    `make` is called only if no model holds this tensor.
    """
    made, key = _DERIVED.setdefault(weight, WeakValueDictionary()), (kind, weight.dtype)
    found = made.get(key)
    if found is None:
        made[key] = found = make()
    return found


@dataclass(frozen=True)
class FoldedPair:
    """A LoRA pair that is folded into its fp32 weight, that is, added to the weight.

    base: (out, in), the frozen weight.
    down: (rank, in), LoRA's A.
    up: (out, rank), LoRA's B.
    folded: (out, in), base + scale * up down, with a gradient.
    """

    layer: Any
    base: torch.Tensor
    down: torch.nn.Parameter
    up: torch.nn.Parameter
    scale: float
    bias: torch.Tensor | None
    folded: torch.Tensor

    @torch.no_grad()
    def fold(self) -> None:
        """Compute the folded weight, which is valid until `unfold`."""
        torch.addmm(self.base, self.up, self.down, alpha=self.scale, out=self.folded)
        self.folded.grad = None

    @torch.no_grad()
    def unfold(self) -> None:
        """Compute the gradient of the pair from the gradient of the folded weight."""
        gradient, self.folded.grad = self.folded.grad, None
        if gradient is not None:
            _add_gradient(self.up, torch.mm(gradient, self.down.t()).mul_(self.scale))
            _add_gradient(self.down, torch.mm(self.up.t(), gradient).mul_(self.scale))

    @property
    def forward(self) -> Callable[..., torch.Tensor]:
        """The function that replaces the forward pass of the layer."""
        return lambda inputs, *_: functional.linear(inputs, self.folded, self.bias)


@dataclass(frozen=True)
class AddedPair:
    """A LoRA pair whose output is added to the output of a frozen layer.

    weight: (out, in), the frozen weight in bf16.
    down: (rank, in), LoRA's A.
    up: (out, rank), LoRA's B.
    """

    layer: Any
    # In bf16 the pair is not folded, because rounding would lose most of it.
    weight: torch.Tensor
    down: torch.nn.Parameter
    up: torch.nn.Parameter
    scale: float
    bias: torch.Tensor | None

    @property
    def forward(self) -> Callable[..., torch.Tensor]:
        """The function that replaces the forward pass of the layer."""

        def act(inputs: torch.Tensor, *_: Any) -> torch.Tensor:
            found: torch.Tensor = _Beside.apply(  # type: ignore[no-untyped-call]
                inputs, self.weight, self.bias, self.down, self.up, self.scale
            )
            return found

        return act


def pairs_of(model: torch.nn.Module, dtype: torch.dtype) -> tuple[list[FoldedPair], list[AddedPair]]:
    """Return the LoRA pairs of a model that this module computes faster than peft. `dtype` is the model's dtype."""
    if dtype == torch.float32:
        return [_folded(module) for module in model.modules() if _can_fold(module)], []
    layers: list[Any] = [module for module in model.modules() if _is_plain_lora(module) and _computes_in(module, dtype)]
    bytes_made = sum(2 * _size(module) for module in layers if type(module.get_base_layer()) is not torch.nn.Linear)
    return [], [_beside(module, dtype) for module in layers] if bytes_made <= MOST_KEPT else []


def _lora_layers() -> Iterator[type]:
    """Yield the supported classes of LoRA layers."""
    yield LoraLinear
    if not import_problem():
        from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt

        yield from (Linear4bit, Linear8bitLt)


_LORA_LAYERS = frozenset(_lora_layers())


def _is_plain_lora(module: Any) -> bool:
    """Return whether a module is a plain LoRA layer without dropout, on a frozen layer."""
    if type(module) not in _LORA_LAYERS or module.merged or module.disable_adapters or not module.active_adapters:
        return False
    name = module.active_adapters[0]
    if name not in module.lora_A or name in module.lora_variant or getattr(module, "fan_in_fan_out", False):
        return False
    if module.get_base_layer().weight.requires_grad or module.lora_B[name].bias is not None:
        return False
    return isinstance(module.lora_dropout[name], torch.nn.Identity)


def _can_fold(module: Any) -> bool:
    """Return whether a module is a LoRA layer whose pair can be folded, and folding saves time."""
    if not _is_plain_lora(module) or type(module.get_base_layer()) is not torch.nn.Linear:
        return False
    # Folding needs the gradient of the whole weight. A weight that is much larger than the pair makes folding slow.
    rank, wide = module.lora_A[module.active_adapters[0]].weight.shape
    return bool(_size(module) <= 8 * rank * (wide + module.get_base_layer().out_features))


def _computes_in(module: Any, dtype: torch.dtype) -> bool:
    """Return whether the layer and its pair compute in `dtype`."""
    base = module.get_base_layer()
    if module.cast_input_dtype_enabled:
        return False
    if type(base) is torch.nn.Linear:
        return bool(base.weight.dtype == dtype)
    if getattr(base.weight, "quant_state", None) is not None:
        return bool(base.compute_dtype == dtype and base.weight.quant_state.shape[0] == base.out_features)
    return hasattr(base, "state") and not base.state.has_fp16_weights


def _size(module: Any) -> int:
    base = module.get_base_layer()
    return int(base.in_features * base.out_features)


def _folded(module: Any) -> FoldedPair:
    base = module.get_base_layer()
    folded = derived_tensor("folded", base.weight, lambda: torch.empty_like(base.weight).requires_grad_(True))
    return FoldedPair(module, base.weight.detach(), *_parts(module), base.bias, folded)


def _beside(module: Any, dtype: torch.dtype) -> AddedPair:
    base = module.get_base_layer()
    bias = None if base.bias is None else base.bias.to(dtype)
    weight = base.weight.detach()
    if type(base) is not torch.nn.Linear:
        weight = derived_tensor(f"wide {dtype}", base.weight, lambda: _dequantised(base).to(dtype))
    return AddedPair(module, weight, *_parts(module), bias)


def _dequantised(base: Any) -> torch.Tensor:
    # peft's `dequantize_module_weight` would lose the scales of 8-bit weights that have been used in a forward pass.
    # The result is kept. bitsandbytes itself would dequantise each weight in every forward and backward pass.
    wide: torch.Tensor = dequantize_bnb_weight(base.weight, getattr(base, "state", None))
    return wide.detach()


def _parts(module: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter, float]:
    name = module.active_adapters[0]
    return module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def _add_gradient(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


class _Beside(torch.autograd.Function):
    """Compute inputs weight^T + bias + scale * inputs down^T up^T, in the dtype of the inputs (..., in)."""

    @staticmethod
    def forward(ctx: Any, inputs: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float) -> Any:
        flat_ni = inputs.reshape(-1, inputs.shape[-1])
        down_ri, up_or = down.to(inputs.dtype), up.to(inputs.dtype)
        low_nr = torch.mm(flat_ni, down_ri.t())
        ctx.save_for_backward(flat_ni, weight, down_ri, up_or, low_nr)
        ctx.scale, ctx.shape, ctx.dtype = scale, inputs.shape, down.dtype
        found = functional.linear(flat_ni, weight, bias).addmm_(low_nr, up_or.t(), alpha=scale)
        return found.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        flat_ni, weight, down_ri, up_or, low_nr = ctx.saved_tensors
        gradient_no = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_low_nr = torch.mm(gradient_no, up_or).mul_(ctx.scale)
        of_up = torch.mm(gradient_no.t(), low_nr).to(ctx.dtype).mul_(ctx.scale)
        of_down = torch.mm(of_low_nr.t(), flat_ni).to(ctx.dtype)
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.mm(gradient_no, weight).addmm_(of_low_nr, down_ri).view(ctx.shape)
        return of_inputs, None, None, of_down, of_up, None
