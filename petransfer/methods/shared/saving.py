"""Save adapters in the form that plain peft loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel


def save_adapter(model: torch.nn.Module, folder: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors. They contain no path of this machine.

    Args:
        model: the peft model.
        folder: the folder for the two files; it is created if it does not exist.
        base: the name of the base model, for adapter_config.json.
    """
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    finish_config(folder, base)


def finish_config(folder: Path, base: str, **changes: object) -> None:
    """Complete the adapter_config.json that peft wrote, and remove the empty model card that peft wrote.

    peft writes the names of layers in an order that differs from process to process. They are sorted, so that the same
    run gives the same file.

    Args:
        folder: the folder with adapter_config.json.
        base: the name of the base model; it replaces the path that peft wrote.
        **changes: other keys to set in adapter_config.json.
    """
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes, "base_model_name_or_path": base}
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)
