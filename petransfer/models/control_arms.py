"""Make the models of the control arms: comparison models whose weights are partly or completely random."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from petransfer.models.file_backed import FileBackedTensors, copy_parameter
from petransfer.models.rotary_positions import reset_dynamic_frequencies
from petransfer.models.saving import save_model
from petransfer.recipe.run_spec import Reinit

# The largest size of each file when a model with random weights is written. One file at a time is held in memory.
SHARD = "128MB"


def randomly_initialized(auto: Any, config: Any, own_head: bool) -> PreTrainedModel:
    """Return a model in fp32 with random weights from transformers' initialization.

    Args:
        own_head: Whether the output head is untied from the embeddings.
    """
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    reset_dynamic_frequencies(model)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    # transformers ties the head of every new T5; the untied head of T5 v1.1 and mT5 gets T5's initial deviation
    if own_head and head is not None and head.weight is embeddings.weight:
        drawn = torch.empty_like(embeddings.weight).normal_(std=getattr(config, "initializer_factor", 1.0))
        head.weight = torch.nn.Parameter(drawn)
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    return model


def partly_random(
    new: PreTrainedModel, pretrained: Callable[[], PreTrainedModel], reinit: Reinit, dtype: torch.dtype
) -> PreTrainedModel:
    """Return `new` in `dtype`, with pretrained values for all weights that `reinit` does not select.

    Args:
        reinit: The random weights: `embeddings` (input embeddings and an untied head), `body` (all other weights) or
            `all`.
    """
    model = new.to(dtype)
    if reinit != "all":
        copy_pretrained(pretrained(), model, embeddings=reinit == "body")
    return model


def write_partly_random(
    folder: str,
    new: Callable[[], PreTrainedModel],
    pretrained: Callable[[str], PreTrainedModel],
    reinit: Reinit,
    seed: int,
) -> None:
    """Write the model of `partly_random` in bf16 to `folder`, without holding the model in memory.

    Args:
        pretrained: Function that loads the checkpoint without reading its weights. Its argument is a folder for weights
            on disk.
    """
    with tempfile.TemporaryDirectory(dir=folder) as parts:
        files = FileBackedTensors(parts)
        torch.manual_seed(seed)
        with files:
            model = new()
        files.narrow(model, torch.bfloat16)
        if reinit != "all":
            copy_pretrained(pretrained(parts), model, embeddings=reinit == "body")
        save_model(model, folder, max_shard_size=SHARD)


@torch.no_grad()
def copy_pretrained(source: PreTrainedModel, target: PreTrainedModel, embeddings: bool) -> None:
    """Copy the input embeddings and an untied head (`embeddings` True), or all other weights, to `target`."""
    ends = {
        id(end.weight) for end in (target.get_input_embeddings(), target.get_output_embeddings()) if end is not None
    }
    for name, value in target.named_parameters():
        if (id(value) in ends) == embeddings:
            copy_parameter(source, name, value)
