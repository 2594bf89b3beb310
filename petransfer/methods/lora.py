"""LoRA (Hu et al. 2021) through peft, on all linear layers unless told otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.nn import functional

from petransfer.checkpoints.load import Loaded
from petransfer.errors import UserError
from petransfer.recipe.spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model with frozen weights and adapters drawn from `seed`; adapters are held in fp32.

    Raises:
        UserError: the targets name no layer, or rows are to be trained beside a head of its own.
    """
    targets = method.targets if isinstance(method.targets, str) else list(method.targets)
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if loaded.layout.encoder_decoder else "CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        trainable_token_indices=_trained_rows(loaded, method),
    )
    torch.manual_seed(seed)
    try:
        model: torch.nn.Module = get_peft_model(loaded.model, config)
    except ValueError as error:
        raise UserError(f"LoRA cannot be put on {targets!r}: {str(error).splitlines()[0][:160]}") from error
    if method.bits < 32:
        _compute_as_the_base(model)
    return model


class _Narrow(torch.nn.Linear):
    """A matrix that is held in fp32 and multiplied in the dtype of what comes in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight.to(input.dtype))


def _compute_as_the_base(model: torch.nn.Module) -> None:
    """peft would widen what goes into every adapter to fp32 and keep that for the backward pass."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for matrix in (*module.lora_A.values(), *module.lora_B.values()):
                if type(matrix) is torch.nn.Linear and matrix.bias is None:
                    matrix.__class__ = _Narrow


def save(model: torch.nn.Module, folder: Path, base: str) -> None:
    """adapter_config.json and adapter_model.safetensors, which plain peft loads; no path of this machine in them."""
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card


def _trained_rows(loaded: Loaded, method: MethodSpec) -> dict[str, list[int]] | None:
    """Rows of the input embeddings that are trained. peft applies them to every layer that is tied to it too."""
    if method.embeddings == "frozen":
        return None
    embeddings = loaded.model.get_input_embeddings()
    rows = range(embeddings.num_embeddings) if method.embeddings == "trained" else loaded.new_pieces
    if not rows:
        return None
    head = loaded.model.get_output_embeddings()
    if loaded.layout.encoder_decoder and head is not None and head.weight is not embeddings.weight:
        # peft believes the configuration, where transformers says "tied" for every T5, and would overwrite the head
        raise UserError(
            f"embeddings: {method.embeddings} cannot be had with LoRA on a T5 with a head of its own (v1.1, mT5): "
            "peft would tie the two; take embeddings: frozen, or method full"
        )
    name = next(name for name, module in loaded.model.named_modules() if module is embeddings)
    return {name.rsplit(".", 1)[-1]: list(rows)}
