"""Write checkpoints with the shape of real ones and random weights, to measure memory.

The memory of training does not depend on the values of the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from petransfer.models.architecture import configuration
from petransfer.models.control_arms import randomly_initialized
from petransfer.models.registry import checkpoint_spec
from petransfer.models.support import supported_class

SHARD = 2 * 2**30


def write_random(name: str, folder: Path, layers: int | None = None, shard: int = SHARD) -> int:
    """Write a checkpoint with random weights in bf16 to `folder`, and return its number of parameters.

    Args:
        name: a registered checkpoint, whose shape is used.
        folder: the folder to write to.
        layers: number of layers of the encoder and of the decoder; None for as many as the real checkpoint has.
        shard: maximum size of a weight file in bytes.
    """
    config, own_head = configuration(checkpoint_spec(name))
    if layers:
        for field in ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "n_layer"):
            if getattr(config, field, None) is not None:
                setattr(config, field, layers)
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = layers
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    with torch.device("meta"):
        model = randomly_initialized(supported_class(config, name), config, own_head)
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(model, folder, shard)
    config.architectures, config.dtype = [type(model).__name__], "bfloat16"
    config.save_pretrained(folder)
    # The measured steps use made-up token ids. This tokenizer only completes the checkpoint and is never used.
    tokens = {f"p{at}": at for at in range(8)} | {"<pad>": 8, "</s>": 9}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="p0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    return sum(value.numel() for value in model.parameters())


def _write_shards(model: Any, folder: Path, limit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    names: dict[str, str] = {}
    size = total = 0
    for name, value in model.named_parameters():  # lists a tied tensor only once
        need = 2 * value.numel()
        if shards[-1] and size + need > limit:
            _flush(shards[-1], folder, len(shards))
            shards[-1].clear()
            shards.append({})
            size = 0
        # One row of random numbers is repeated. Drawing billions of numbers would take longer than the measurements.
        row = torch.randn(value.shape[-1], generator=generator) / value.shape[-1] ** 0.5
        shards[-1][name] = row.to(torch.bfloat16).expand(value.shape).contiguous()
        names[name] = _file(len(shards))
        size, total = size + need, total + need
    _flush(shards[-1], folder, len(shards))
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _flush(tensors: dict[str, torch.Tensor], folder: Path, number: int) -> None:
    save_file(tensors, folder / _file(number), metadata={"format": "pt"})


def _file(number: int) -> str:
    return f"model-{number:05d}.safetensors"
