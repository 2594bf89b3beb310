"""PiSSA (Meng et al. 2024): LoRA that starts from the largest singular values of the weights it goes on.

The base is left as it is: a second, frozen adapter takes the start away again, which is what PiSSA's changed base does,
without rounding it anew, and on quantised bases too. Saved it is a plain LoRA of twice the rank.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from petransfer.errors import UserError
from petransfer.methods.common import as_trained, put, tidy
from petransfer.methods.lora import configuration
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec

TRAINED, START = "default", "start"


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """As `lora.apply`.

    Raises:
        UserError: the rank is above that of a weight.
    """
    config = configuration(loaded, method)
    model: Any = put(loaded, method, copy.deepcopy(config), seed)
    model.add_adapter(START, config)
    as_trained(model, method.bits)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            _start(name, module, method.rank)
    model.base_model.set_adapter([TRAINED, START])
    for name, value in model.named_parameters():
        if f".{START}." in name:
            value.requires_grad_(False)
    whole: torch.nn.Module = model
    return whole


@torch.no_grad()
def _start(name: str, module: Any, rank: int) -> None:
    base = module.get_base_layer()
    weight: torch.Tensor = dequantize_module_weight(base)
    weight_oi = (weight.T if isinstance(base, Conv1D) else weight).float()
    if rank > min(weight_oi.shape):
        layer = name.rsplit("model.", maxsplit=1)[-1]
        raise UserError(f"pissa: rank {rank} is above the {min(weight_oi.shape)} of {layer}")
    if weight_oi.device.type == "meta":
        return
    left_or, sizes_r, right_ri = torch.linalg.svd(weight_oi, full_matrices=False)
    root_r = (sizes_r[:rank] / module.scaling[TRAINED]).sqrt()
    start = {"lora_A": root_r[:, None] * right_ri[:rank], "lora_B": left_or[:, :rank] * root_r}
    for part, value in start.items():
        matrices = getattr(module, part)
        matrices[TRAINED].weight.copy_(value)
        matrices[START].weight.copy_(-value if part == "lora_B" else value)


def save(model: torch.nn.Module, folder: Path, base: str) -> None:
    """A plain LoRA of twice the rank, whose second half takes the start away."""
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
    tidy(folder, base, r=2 * config.r, lora_alpha=2 * config.lora_alpha)
