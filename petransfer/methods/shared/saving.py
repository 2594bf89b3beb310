"""Save adapters in the form that plain peft loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel


def save_adapter(model: torch.nn.Module, folder: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, without paths of this machine.

    `base` is the name of the base model.
    """
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    finish_config(folder, base)


def finish_config(folder: Path, base: str, **changes: object) -> None:
    """Write the name of the base model and other keys into adapter_config.json, and remove peft's empty model card."""
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes, "base_model_name_or_path": base}
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            # peft's order of layers differs between processes; equal runs must write equal files
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)
