"""PiSSA (Meng et al. 2024): LoRA whose matrices start from the largest singular values of the weights.

The paper subtracts the product of the start matrices from the base model's weights. Here, a second, frozen adapter
subtracts the product. Therefore the base model's weights do not change, and they can be quantised. The two adapters are
saved as one plain LoRA of twice the rank.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.errors import UserError
from petransfer.recipe.methods import LORA_KEYS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded

# Names of the two adapters in peft: the trained adapter, and the frozen adapter that subtracts its start values.
TRAINED, START = "default", "start"


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and trainable LoRA matrices that start from the largest singular values."""
    from peft.tuners.lora import LoraLayer

    from petransfer.methods.lora import lora_config
    from petransfer.methods.shared.attach import attach_adapter
    from petransfer.methods.shared.compute_dtype import compute_as_in_training

    config = lora_config(loaded, method)
    model: Any = attach_adapter(loaded, method, copy.deepcopy(config), seed)
    model.add_adapter(START, config)
    compute_as_in_training(model, method.bits)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            _start_from_base(name, module, method.rank)
    model.base_model.set_adapter([TRAINED, START])
    for name, value in model.named_parameters():
        if f".{START}." in name:
            value.requires_grad_(False)
    adapted: torch.nn.Module = model
    return adapted


def _start_from_base(name: str, module: Any, rank: int) -> None:
    """Set the LoRA matrices A and B of a layer from the largest singular values of the layer's weight."""
    import torch
    from transformers.pytorch_utils import Conv1D

    base = module.get_base_layer()
    sides = (base.in_features, base.out_features) if hasattr(base, "in_features") else tuple(base.weight.shape)
    if rank > min(sides):
        layer = name.rsplit("model.", maxsplit=1)[-1]
        raise UserError(
            f"pissa: rank {rank} is too large for the layer {layer}, whose smaller dimension is {min(sides)}; use rank "
            f"{min(sides)} or less"
        )
    if base.weight.device.type == "meta":
        return
    with torch.no_grad():
        weight = _dequantized(base)
        weight_oi = (weight.T if isinstance(base, Conv1D) else weight).float()
        left_or, singular_r, right_ri = torch.linalg.svd(weight_oi, full_matrices=False)
        root_r = (singular_r[:rank] / module.scaling[TRAINED]).sqrt()
        start = {"lora_A": root_r[:, None] * right_ri[:rank], "lora_B": left_or[:, :rank] * root_r}
        for part, value in start.items():
            matrices = getattr(module, part)
            matrices[TRAINED].weight.copy_(value)
            # the frozen adapter has the opposite sign: the two adapters cancel each other at the start
            matrices[START].weight.copy_(-value if part == "lora_B" else value)


def _dequantized(base: Any) -> torch.Tensor:
    """Return the weight of a layer. A quantised weight is dequantised."""
    from peft.utils.integrations import dequantize_module_weight

    weight = base.weight
    if type(weight).__name__ != "Int8Params":
        found: torch.Tensor = dequantize_module_weight(base)
        return found
    # bitsandbytes moves the scales of an 8-bit weight to the state of the layer in the first forward pass; peft's
    # function looks for the scales in only one of the two places
    scales_o = weight.SCB if weight.SCB is not None else base.state.SCB
    codes_oi = weight.data if base.state.CB is None else base.state.CB
    dequantized_oi: torch.Tensor = codes_oi.float() * scales_o.to(codes_oi.device).float()[:, None] / 127
    return dequantized_oi


def save(model: torch.nn.Module, folder: Path, base: str) -> None:
    """Save the two adapters as one plain LoRA of twice the rank. The second half subtracts the start values."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    from petransfer.methods.shared.saving import finish_config

    assert isinstance(model, PeftModel)
    model.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False)
    both = [
        get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False) for name in (TRAINED, START)
    ]
    joined = {
        name: torch.cat([value, both[1][name]], 0 if ".lora_A." in name else 1).contiguous().cpu()
        for name, value in both[0].items()
    }
    save_file(joined, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config: Any = model.peft_config[TRAINED]
    finish_config(folder, base, r=2 * config.r, lora_alpha=2 * config.lora_alpha)


METHOD = Method(
    name="pissa",
    title="PiSSA",
    source="Meng et al. 2024",
    apply=apply,
    learning_rate_factor=0.5,
    keys=LORA_KEYS - {"embeddings", "dropout"},
    size="rank",
    save=save,
    not_stacked="its initial weights are computed from the base model and subtracted by a second adapter",
)
