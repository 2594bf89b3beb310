"""Recognise adapters in other programs' file formats, and explain how to convert them to a format that peft reads."""

from __future__ import annotations

import re
from collections.abc import Iterable

from petransfer.sharing.bundle_files import CONFIG, WEIGHTS

# For each format: a pattern for names of files and folders, a description, and advice.
_FORMATS = (
    (
        r"(\d+_)?adapters\.(safetensors|npz)",
        "an adapter of mlx-lm",
        "write the merged model with `mlx_lm.fuse --model BASE --adapter-path FOLDER --save-path MERGED`, and name the "
        "folder MERGED",
    ),
    (
        r"adapter_\d+\.pt",
        "an adapter of torchtune",
        f"let torchtune save it with FullModelHFCheckpointer, which also writes peft's {WEIGHTS}, and name that folder",
    ),
    (
        r"pytorch_adapter\.bin|model_adapter\.safetensors",
        "an adapter of the library `adapters` (AdapterHub)",
        "merge it there with `model.merge_adapter(NAME)`, save the whole model, and name its folder",
    ),
    (
        r"pytorch_lora_weights\.(safetensors|bin)",
        "a LoRA of an image model (diffusers)",
        "petransfer uses adapters of text models only",
    ),
    (
        r"pytorch_model_fsdp.*|__\d+_\d+\.distcp",
        "a part of the weights, as FSDP saves them",
        "save the adapter from the training program again, with `fsdp_state_dict_type: FULL_STATE_DICT`",
    ),
    (
        r"zero_to_fp32\.py|global_step\d+",
        "a part of a folder of DeepSpeed, which saves weights in parts",
        "save the adapter from the training program again, with `stage3_gather_16bit_weights_on_model_save: true`",
    ),
    (r".*\.gguf", "a GGUF file, which llama.cpp runs", "name the adapter or the model it was made from"),
)


def foreign_format(names: Iterable[str]) -> str | None:
    """Return a description and advice for an adapter whose files peft cannot read. None for an unknown format.

    Args:
        names: the names of the files and folders beside each other.
    """
    found = sorted(names)
    for pattern, what, remedy in _FORMATS:
        if (name := next((one for one in found if re.fullmatch(pattern, one)), None)) is not None:
            return f"{name} is {what}; {remedy}"
    if WEIGHTS in found and CONFIG not in found:
        return f"it has {WEIGHTS} but no {CONFIG}; get this file from the same place, and put it beside the other"
    return None
