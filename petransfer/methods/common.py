"""What the methods share: where they go, how peft is asked, in which dtype they compute, and how they are saved."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from petransfer.errors import UserError
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec

# What peft calls a LoRA that goes on no layer.
NOWHERE = "dummy-target-modules"


def task_type(loaded: Loaded) -> str:
    """peft's word for encoder-decoder or decoder-only."""
    return "SEQ_2_SEQ_LM" if loaded.layout.encoder_decoder else "CAUSAL_LM"


def targets(loaded: Loaded, method: MethodSpec, default: Iterable[str] | None = None) -> str | list[str]:
    """The layers that a method goes on: a word or names' endings for peft, or whole names where layers are chosen.

    default: endings that `all-linear` stands for, where it does not mean all.

    Raises:
        UserError: a layer is chosen that the model has not.
    """
    asked = method.targets if isinstance(method.targets, str) else list(method.targets)
    if asked == "all-linear" and default is not None:
        asked = list(default)
    if not method.layers:
        return asked
    head = loaded.model.get_output_embeddings()
    linear = {
        name: module for name, module in loaded.model.named_modules() if _is_linear(module) and module is not head
    }
    depths = {name: depth for name in linear if (depth := _depth(name)) is not None}
    lacking = sorted(set(method.layers) - set(depths.values()))
    if lacking:
        count = max(depths.values(), default=-1) + 1
        raise UserError(f"layers: {lacking[0]} is none of this model's, which are 0 to {count - 1}")
    chosen = [name for name, depth in depths.items() if depth in method.layers and _named(name, asked)]
    if not chosen:
        raise UserError(f"targets {asked!r} name no linear layer in the layers {', '.join(map(str, method.layers))}")
    return chosen


def _is_linear(module: torch.nn.Module) -> bool:
    """Whether it is a linear layer, quantised ones among them, which are subclasses."""
    return isinstance(module, torch.nn.Linear | Conv1D)


def _depth(name: str) -> int | None:
    """The first number in a module's name, which is its layer's (`encoder.block.3.layer.0.SelfAttention.q`)."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def _named(name: str, asked: str | list[str]) -> bool:
    if asked == "all-linear":
        return True
    if isinstance(asked, str):
        return re.fullmatch(asked, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in asked)


def put(loaded: Loaded, method: MethodSpec, config: PeftConfig, seed: int) -> torch.nn.Module:
    """The model with frozen weights and what the method adds drawn from `seed`, held in fp32.

    Raises:
        UserError: peft cannot put it on this model.
    """
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():  # of norms and Conv1D, which peft then treats rightly
            warnings.simplefilter("ignore", UserWarning)
            model: torch.nn.Module = get_peft_model(loaded.model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        where = getattr(config, "target_modules", None) or loaded.model.config.model_type
        said = str(error).splitlines()[0][:160]
        title = "LoRA" if method.name == "lora" else method.name
        raise UserError(f"{title} cannot be put on {where!r:.120}: {said}") from error
    as_trained(model, method.bits)
    return model


def as_trained(model: Any, bits: int) -> None:
    """Makes an adapted model compute as petransfer trains it: in the base's width, with logits of real tokens alone.

    peft would widen what goes into every adapter to fp32 and keep that for the backward pass, and gives the logits at a
    decoder's virtual tokens too.
    """
    kind = str(model.active_peft_config.peft_type.value)
    if kind == "PROMPT_TUNING" and not getattr(model.config, "is_encoder_decoder", False):
        model.register_forward_hook(_without_virtual_tokens)
    if bits == 32:
        return
    for module in model.modules():
        if isinstance(module, LNTuningLayer):
            for layer in module.ln_tuning_layers.values():
                compute_narrow(layer, ("weight", "bias"))
        elif isinstance(module, BaseTunerLayer):
            _narrow_inputs(module)


def _without_virtual_tokens(model: Any, _: Any, output: Any) -> Any:
    output.logits = output.logits[:, model.active_peft_config.num_virtual_tokens :]
    return output


class _Narrow(torch.nn.Linear):
    """A matrix that is held in fp32 and multiplied in the dtype of what comes in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight.to(input.dtype))


def _narrow_inputs(module: BaseTunerLayer) -> None:
    if not isinstance(module, LoraLayer) or len(module.lora_magnitude_vector):
        return  # DoRA's norms, and vectors that scale, are computed wide
    module.cast_input_dtype_enabled = False
    for matrix in (*module.lora_A.values(), *module.lora_B.values()):
        if type(matrix) is torch.nn.Linear and matrix.bias is None:
            matrix.__class__ = _Narrow


def compute_narrow(module: torch.nn.Module, names: Iterable[str], dtype: torch.dtype = torch.bfloat16) -> None:
    """Holds a module's own tensors in fp32 and computes with what bf16 makes of them."""
    held = [name for name in names if module._parameters.get(name) is not None]
    for name in held:
        module._parameters[name].data = module._parameters[name].data.float()  # type: ignore[union-attr]
    kind = type(module)
    views = {name: _view(name, dtype) for name in held}
    module.__class__ = type(kind.__name__, (kind,), {**views, "__module__": kind.__module__})


def _view(name: str, dtype: torch.dtype) -> property:
    return property(lambda module: module._parameters[name].to(dtype))


def save(model: torch.nn.Module, folder: Path, base: str) -> None:
    """adapter_config.json and adapter_model.safetensors, which plain peft loads; no path of this machine in them."""
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    tidy(folder, base)


def tidy(folder: Path, base: str, **changes: object) -> None:
    """Names the base in what peft wrote, and makes `changes` to its configuration."""
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes, "base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card
