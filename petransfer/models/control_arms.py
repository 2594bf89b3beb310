"""Make the models of the control arms: comparison models whose weights are partly or completely random."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from petransfer.models.file_backed import FileBackedTensors, copy_parameter
from petransfer.models.saving import save_model
from petransfer.recipe.run_spec import Reinit

# The largest size of each file when a model with random weights is written. One file at a time is held in memory.
SHARD = "128MB"


def randomly_initialized(auto: Any, config: Any, own_head: bool) -> PreTrainedModel:
    """Return a model in fp32 with random weights, drawn as transformers initializes this architecture.

    transformers ties the output head of every new T5 to its embeddings, even if the configuration says otherwise.
    Therefore the untied head of T5 v1.1, mT5 and similar models is initialized here, with the standard deviation of
    T5's initial embeddings and heads.

    Args:
        auto: the auto class of transformers that makes the model.
        config: the model's configuration.
        own_head: whether the head is not tied to the embeddings.
    """
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
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
        new: the model with random weights in fp32.
        pretrained: loads the checkpoint.
        reinit: which weights are random: `embeddings` (the input embeddings and an untied head), `body` (all other
            weights) or `all`.
        dtype: the dtype of the result.
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
    """Write the model that `partly_random` would return in bf16 to `folder`, without holding the model in memory.

    The written weights have exactly the same bits as those that `partly_random` returns.

    Args:
        folder: the folder that the model is written to.
        new: makes the model with random weights in fp32.
        pretrained: loads the checkpoint with its weights left on disk; its argument is a folder for offloaded weights.
        reinit: which weights are random; see `partly_random`.
        seed: the seed of the random weights.
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
    """Copy weights from `source` to `target`: the input embeddings and an untied head, or all other weights.

    Args:
        source: the pretrained model; its weights may be on disk.
        target: the model that is changed.
        embeddings: True copies the input embeddings and an untied head; False copies all other weights.
    """
    ends = {
        id(end.weight) for end in (target.get_input_embeddings(), target.get_output_embeddings()) if end is not None
    }
    for name, value in target.named_parameters():
        if (id(value) in ends) == embeddings:
            copy_parameter(source, name, value)
