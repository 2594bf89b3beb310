"""Quantise models to 8 and 4 bits with bitsandbytes, count their bytes, and list the layers that are not quantised.

LLM.int8: Dettmers et al. 2022. NF4 with double quantisation: Dettmers et al. 2023 (QLoRA).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from petransfer.errors import UserError, no_bf16
from petransfer.models.bitsandbytes_import import import_problem
from petransfer.models.text_part import is_text
from petransfer.models.wrappers import base_model_of
from petransfer.recipe.run_spec import Bits, Optimizer

REASONS = {
    "embeddings": "rows are looked up, not multiplied",
    "tied head": "shares its weight with the embeddings",
    # measured on the six embedded arms with `python -m benchmarks quantise`; see results/bench/quantise-cpu.json
    "head": "quantising the head alone raises the loss by 0.3 to 0.8 % at 4 bits; quantising all other layers together "
    "raises it by 0.0 to 1.2 %",
    "norm": "has one number per channel",
    "bias": "has one number per channel",
    "keep_wide": "kept in 16 bits by the recipe (keep_wide)",
    "other inputs": "part of an image or audio encoder, through which no text passes",
    "other": "not a kind of layer that bitsandbytes can quantise",
}
# The reason for the head at 8 bits, from the same measurement. The head is left unquantised because plain transformers,
# which must also be able to load the adapters, does so.
HEAD_AT_8 = "not quantised by transformers; quantising it would raise the loss by less than 0.05 % at 8 bits"


@dataclass(frozen=True)
class UnquantizedTensor:
    """An unquantised tensor of a quantised model.

    Args:
        name: Name of the tensor.
        bytes: Size of its storage in bytes.
        dtype: Its dtype, such as `bfloat16`.
        reason: Why it was not quantised, as a key of `REASONS`.
    """

    name: str
    bytes: int
    dtype: str
    reason: str


@dataclass(frozen=True)
class Inventory:
    """The memory of a model's weights. A tensor that two modules share is counted once.

    Args:
        bytes: Bytes of each dtype. `nf4` are 4-bit weights; `scales` are the scales of quantised weights.
        parameters: Number of weights. A byte with two packed 4-bit weights counts as two.
        wide: The unquantised tensors of a quantised model. Empty at 16 and 32 bits.
    """

    bytes: dict[str, int]
    parameters: int
    wide: tuple[UnquantizedTensor, ...]

    @property
    def total(self) -> int:
        """The bytes of all weights together."""
        return sum(self.bytes.values())

    @property
    def share(self) -> dict[str, float]:
        """The percentage of all bytes that each dtype takes."""
        return {name: round(100 * size / self.total, 2) for name, size in self.bytes.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the inventory as an entry for result.json. Unquantised tensors are grouped by reason."""
        reasons = REASONS | ({"head": HEAD_AT_8} if "int8" in self.bytes else {})
        wide: dict[str, dict[str, Any]] = {}
        for tensor in self.wide:
            of = wide.setdefault(tensor.reason, {"bytes": 0, "why": reasons[tensor.reason], "tensors": []})
            of["bytes"] += tensor.bytes
            of["tensors"].append(tensor.name)
        return {"bytes": dict(self.bytes), "share": self.share, "parameters": self.parameters, "wide": wide}


def quantization_config(bits: Bits) -> BitsAndBytesConfig:
    """Return the settings for transformers: LLM.int8 at 8 bits, NF4 with double quantisation at 4 bits."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        # T5 casts the input of `wo` to the storage dtype; the default, uint8, would round activations to whole numbers
        bnb_4bit_quant_storage=torch.bfloat16,
    )


def require_bitsandbytes(bits: Bits) -> None:
    """Raise UserError if bitsandbytes is missing or does not work."""
    _require_bitsandbytes(f"bits: {bits}", "bits: 16")


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise UserError for an 8-bit optimizer if bitsandbytes is missing or does not work."""
    if optimizer != "adamw":
        _require_bitsandbytes(f"optimizer: {optimizer}", "optimizer: adamw")


def _require_bitsandbytes(what: str, instead: str) -> None:
    problem = import_problem()
    if problem:
        raise UserError(
            f"{what} needs bitsandbytes, which does not work here ({problem}); use {instead}, or install it for this "
            "platform"
        )


def check_quantizable(bits: Bits, device: torch.device) -> None:
    """Raise UserError if this machine cannot quantise, before anything is loaded."""
    require_bitsandbytes(bits)
    check_bf16(bits, device)


def check_bf16(bits: Bits, device: torch.device) -> None:
    """Raise UserError if a training with less than 32 bits cannot compute in bf16 on this device."""
    if bits < 32 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise no_bf16(bits, torch.cuda.get_device_name(device))


# The largest accepted share of a model's bytes in layers that should have been quantised, but were not.
MOST_LEFT = 0.1


def refuse_poorly_quantized(model: PreTrainedModel, name: str, bits: Bits, keep_wide: Sequence[str]) -> None:
    """Raise UserError if bitsandbytes could quantise no layer, or too small a part of the model (see `MOST_LEFT`)."""
    found = inventory(model, keep_wide)
    if not {"int8", "nf4"} & set(found.bytes):
        raise UserError(
            f"bits: {bits} is not available for {name} ({model.config.model_type}): bitsandbytes can quantise none of "
            "its layers; use bits: 16"
        )
    left = [tensor for tensor in found.wide if tensor.reason == "other"]
    # bitsandbytes cannot quantise some models, such as a mixture of experts with all experts in one tensor
    share = sum(tensor.bytes for tensor in left) / found.total
    if share > MOST_LEFT:
        largest = max(left, key=lambda tensor: tensor.bytes)
        raise UserError(
            f"bits: {bits} is not available for {name} ({model.config.model_type}): {share:.0%} of its bytes would be "
            f"left at 16 bits, {largest.name} among them; use bits: 16"
        )


@contextlib.contextmanager
def left_unquantized(cls: type, names: Sequence[str] = ()) -> Iterator[None]:
    """Inside the context, quantise all layers of loaded models of `cls`, except the head and `names`."""
    owners = [owner for owner in cls.__mro__ if "_keep_in_fp32_modules" in vars(owner)] or [cls]
    before = [vars(owner).get("_keep_in_fp32_modules") for owner in owners]
    for owner in owners:
        # transformers lists T5's `wo` here, which is needed only for computation in fp16
        owner._keep_in_fp32_modules = list(names) or None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for owner, kept in zip(owners, before, strict=True):
            owner._keep_in_fp32_modules = kept  # type: ignore[attr-defined]


def keep_default_packing(model: torch.nn.Module) -> None:
    """Prevent bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with avx512_bf16."""
    for module in model.modules():
        # The repacking reads each bf16 element of the storage as one byte, fails on layers narrower than 64, rounds the
        # scales to bf16 permanently, and has no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def weight_count(value: torch.Tensor) -> int:
    """Return the number of weights in a tensor. A byte with two packed 4-bit weights counts as two."""
    state = getattr(value, "quant_state", None)
    return int(value.numel() if state is None else state.shape.numel())


def inventory(model: torch.nn.Module, keep_wide: Sequence[str] = ()) -> Inventory:
    """Count the bytes of a model's weights, including the scales of quantisation and excluding adapters."""
    found: Counter[str] = Counter()
    wide: list[UnquantizedTensor] = []
    parameters = 0
    seen: set[int] = set()
    scales_of = _scales(model)
    head = _head(model)
    adapter = _of_adapters(model)
    for name, value in model.named_parameters():
        if id(value) in adapter:
            continue
        size = value.numel() * value.element_size()
        dtype = "nf4" if getattr(value, "quant_state", None) is not None else str(value.dtype).removeprefix("torch.")
        found[dtype] += size
        parameters += weight_count(value)
        fresh = [tensor for tensor in scales_of.get(id(value), []) if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in fresh}
        if fresh:
            found["scales"] += sum(tensor.numel() * tensor.element_size() for tensor in fresh)
        elif scales_of:
            plain = without_adapters(name)
            asked = plain.endswith(tuple(f"{ending}.weight" for ending in keep_wide))
            wide.append(UnquantizedTensor(plain, size, dtype, "keep_wide" if asked else _reason(plain, value, head)))
    return Inventory(dict(found), parameters, tuple(wide))


def _scales(model: torch.nn.Module) -> dict[int, list[torch.Tensor]]:
    """Return the scales and code tables of each quantised weight, by the weight's `id`."""
    found: dict[int, list[torch.Tensor]] = {}
    module: Any
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            inner = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
            found[id(weight)] = [state.absmax, state.code, *inner]
        elif weight is not None and hasattr(weight, "SCB") and weight.dtype == torch.int8 and hasattr(module, "state"):
            # bitsandbytes moves the scales from the weight to the layer at the first forward pass
            found[id(weight)] = [module.state.SCB if weight.SCB is None else weight.SCB]
    return found


def _of_adapters(model: torch.nn.Module) -> set[int]:
    """Return the `id` of each adapter parameter of a peft model, and of each trained parameter of its base."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = []
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            parts = (getattr(module, name, None) for name in module.adapter_layer_names)
            found += [value for part in parts if isinstance(part, torch.nn.Module) for value in part.parameters()]
    if isinstance(model, PeftModel):
        found += [value for part in getattr(model, "prompt_encoder", {}).values() for value in part.parameters()]
        found += [value for value in model.parameters() if value.requires_grad]
    return {id(value) for value in found}


def _head(model: torch.nn.Module) -> torch.Tensor | None:
    base = base_model_of(model)
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    return None if head is None else head.weight


def without_adapters(name: str) -> str:
    """Return the name of a peft model's tensor in the base model."""
    parts = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in _AROUND)


_AROUND = ("base_layer", "token_adapter", "original_module")


def _reason(name: str, value: torch.Tensor, head: torch.Tensor | None) -> str:
    if not is_text(name):
        return "other inputs"
    if name.endswith("bias") and value.dim() == 1:
        return "bias"
    if value.dim() == 1:
        return "norm"
    if value is head:
        return "tied head" if "lm_head" not in name and "embed_out" not in name else "head"
    return "embeddings" if any(part in name for part in ("embed", "shared", "wte", "wpe", "relative")) else "other"
