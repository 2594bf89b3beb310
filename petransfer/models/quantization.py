"""Eight and four bits through bitsandbytes: which layers are quantised, which stay wide and why, and what that weighs.

LLM.int8 is Dettmers et al. 2022, NF4 with double quantisation Dettmers et al. 2023 (QLoRA).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from petransfer.errors import UserError
from petransfer.models import bitsandbytes_import as broken
from petransfer.recipe.run_spec import Bits, Optimizer

REASONS = {
    "embeddings": "rows are looked up, not multiplied",
    "tied head": "its weight is the embeddings'",
    # `python -m benchmarks quantise` on the six embedded arms: results/bench/quantise-cpu.json
    "head": "alone it would add 0.3 to 0.8 % of loss at 4 bits, where all other layers cost 0.0 to 1.2 %",
    "norm": "one number a channel",
    "bias": "one number a channel",
    "keep_wide": "kept so by the recipe (keep_wide)",
    "other": "no layer of a kind that bitsandbytes quantises",
}
# Of the same measurement: no reason of its own, but what plain transformers does, as whom an adapter is loaded.
HEAD_AT_8 = "transformers keeps it so; it would add less than 0.05 % of loss at 8 bits"


@dataclass(frozen=True)
class Wide:
    """A tensor of a quantised model that stayed as it was. bytes: of its storage. reason: a key of REASONS."""

    name: str
    bytes: int
    dtype: str
    reason: str


@dataclass(frozen=True)
class Inventory:
    """What a model's weights take, each shared tensor once.

    bytes: by dtype; 4-bit weights are `nf4`, and what scales quantised weights is `scales`. parameters: of the model
    as it would be without quantisation. wide: the tensors that were not quantised (empty at 16 and 32 bits).
    """

    bytes: dict[str, int]
    parameters: int
    wide: tuple[Wide, ...]

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.bytes.values())

    @property
    def share(self) -> dict[str, float]:
        """Per cent of the bytes, by dtype."""
        return {name: round(100 * size / self.total, 2) for name, size in self.bytes.items()}

    def as_dict(self) -> dict[str, Any]:
        """For result.json: the wide tensors by reason, with the sum of their bytes."""
        said = REASONS | ({"head": HEAD_AT_8} if "int8" in self.bytes else {})
        wide: dict[str, dict[str, Any]] = {}
        for tensor in self.wide:
            of = wide.setdefault(tensor.reason, {"bytes": 0, "why": said[tensor.reason], "tensors": []})
            of["bytes"] += tensor.bytes
            of["tensors"].append(tensor.name)
        return {"bytes": dict(self.bytes), "share": self.share, "parameters": self.parameters, "wide": wide}


def quantization_config(bits: Bits) -> BitsAndBytesConfig:
    """What transformers is told: LLM.int8 with its usual threshold, or NF4, double quantisation, bf16 compute.

    4-bit weights are packed into bf16 storage, four to an element: T5 casts what goes into `wo` to the dtype of `wo`'s
    storage, and with the usual uint8 every activation would be cut to a whole number, in silence.
    """
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16,
    )


def require_bitsandbytes(bits: Bits) -> None:
    """Raises UserError where bitsandbytes is not to be had or does not work."""
    _require_bitsandbytes(f"bits: {bits}", "bits: 16")


def check_optimizer(optimizer: Optimizer) -> None:
    """Raises UserError where an 8-bit optimiser is asked for and bitsandbytes is not to be had or does not work."""
    if optimizer != "adamw":
        _require_bitsandbytes(f"optimizer: {optimizer}", "optimizer: adamw")


def _require_bitsandbytes(what: str, instead: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{what} needs bitsandbytes, which does not work here ({broken.PROBLEM or broken.first_line(error)}); "
            f"take {instead}, or install it for this platform"
        ) from error


def check_quantizable(config: Any, name: str, bits: Bits, device: torch.device) -> None:
    """Refuses what cannot be quantised, before anything is loaded.

    Raises:
        UserError: bitsandbytes does not work here, the card has no bf16, or the checkpoint is quantised already.
    """
    require_bitsandbytes(bits)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"bits: {bits} computes in bf16, which {torch.cuda.get_device_name(device)} has not; bits: 32")
    refuse_already_quantized(config, name)


def refuse_already_quantized(config: Any, name: str) -> None:
    """Refuses a checkpoint whose weights are quantised already.

    Raises:
        UserError: they are.
    """
    own = getattr(config, "quantization_config", None)
    if own is not None:
        method = own.get("quant_method", "unknown") if isinstance(own, dict) else getattr(own, "quant_method", own)
        raise UserError(
            f"{name} is quantised already ({getattr(method, 'value', method)}); name the checkpoint that it was made of"
        )


# Of the bytes of a quantised model, how much may be layers that were meant to be quantised and are not.
MOST_LEFT = 0.1


def refuse_poorly_quantized(model: PreTrainedModel, name: str, bits: Bits, keep_wide: Sequence[str]) -> None:
    """Refuses a model that bitsandbytes could not quantise: the experts of a mixture are one tensor, and no layer.

    Raises:
        UserError: it has no layer that was quantised, or too much of it stays wide that nobody wanted so.
    """
    found = inventory(model, keep_wide)
    if not {"int8", "nf4"} & set(found.bytes):
        raise UserError(
            f"bits: {bits} cannot be had of {name} ({model.config.model_type}): none of its layers; bits: 16"
        )
    left = [tensor for tensor in found.wide if tensor.reason == "other"]
    share = sum(tensor.bytes for tensor in left) / found.total
    if share > MOST_LEFT:
        largest = max(left, key=lambda tensor: tensor.bytes)
        raise UserError(
            f"bits: {bits} cannot be had of {name} ({model.config.model_type}): {share:.0%} of its bytes would stay at "
            f"16 bits, {largest.name} among them; take bits: 16"
        )


@contextlib.contextmanager
def left_unquantized(cls: type, names: Sequence[str] = ()) -> Iterator[None]:
    """While `cls` is loaded only its head and the layers whose names end in `names` stay wide.

    transformers keeps T5's `wo` wide too, which only fp16 needs.
    """
    owners = [owner for owner in cls.__mro__ if "_keep_in_fp32_modules" in vars(owner)] or [cls]
    before = [vars(owner).get("_keep_in_fp32_modules") for owner in owners]
    for owner in owners:
        owner._keep_in_fp32_modules = list(names) or None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for owner, kept in zip(owners, before, strict=True):
            owner._keep_in_fp32_modules = kept  # type: ignore[attr-defined]


def keep_default_packing(model: torch.nn.Module) -> None:
    """Keeps bitsandbytes from packing 4-bit weights otherwise at the first evaluation on a CPU with avx512_bf16.

    What it does there takes each number of the bf16 storage for one byte, fails on layers narrower than a block of 64,
    rounds the scales to bf16 for good, and has no gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def weight_count(value: torch.Tensor) -> int:
    """Return how many weights a tensor holds. bitsandbytes packs two 4-bit weights into each byte."""
    state = getattr(value, "quant_state", None)
    return int(value.numel() if state is None else state.shape.numel())


def inventory(model: torch.nn.Module, keep_wide: Sequence[str] = ()) -> Inventory:
    """Counts a model's weights, quantisation's own tensors among them; adapters in it are left out.

    keep_wide: endings of the names of layers that were to stay wide.
    """
    found: Counter[str] = Counter()
    wide: list[Wide] = []
    parameters = 0
    seen: set[int] = set()
    scales_of = _scales(model)
    head = _head(model)
    for name, value in model.named_parameters():
        if "lora_" in name or "trainable_tokens" in name:
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
            plain = _without_adapters(name)
            asked = plain.endswith(tuple(f"{ending}.weight" for ending in keep_wide))
            wide.append(Wide(plain, size, dtype, "keep_wide" if asked else _reason(plain, value, head)))
    return Inventory(dict(found), parameters, tuple(wide))


def _scales(model: torch.nn.Module) -> dict[int, list[torch.Tensor]]:
    """What each quantised weight needs beside itself, by the weight's id. Maps of codes are shared by layers."""
    found: dict[int, list[torch.Tensor]] = {}
    module: Any
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            inner = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
            found[id(weight)] = [state.absmax, state.code, *inner]
        elif weight is not None and hasattr(weight, "SCB") and weight.dtype == torch.int8 and hasattr(module, "state"):
            # bitsandbytes moves them from the weight to the layer at the first forward pass
            found[id(weight)] = [module.state.SCB if weight.SCB is None else weight.SCB]
    return found


def _head(model: torch.nn.Module) -> torch.Tensor | None:
    base: Any = model
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    return None if head is None else head.weight


def _without_adapters(name: str) -> str:
    """A tensor's name in the model without what peft put around it."""
    parts = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in _AROUND)


_AROUND = ("base_layer", "token_adapter", "original_module")


def _reason(name: str, value: torch.Tensor, head: torch.Tensor | None) -> str:
    if name.endswith("bias") and value.dim() == 1:
        return "bias"
    if value.dim() == 1:
        return "norm"
    if value is head:
        return "tied head" if "lm_head" not in name and "embed_out" not in name else "head"
    return "embeddings" if any(part in name for part in ("embed", "shared", "wte", "wpe", "relative")) else "other"
