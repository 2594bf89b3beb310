"""Find the parts of a model that process text. Models such as Gemma 3 or Qwen-VL also have an image encoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

# Parts of module and parameter names in transformers that indicate images, audio or video.
_OTHER_INPUTS = re.compile(
    r"(^|\.)(vision|visual|image|img|audio|speech|video|mm_|multi_?modal|connector|vqmodel|embed_(vision|audio)|eoi_embedding)"
)
# Linear layers of LED that are used only where a program marks tokens for global attention.
_GLOBAL_ATTENTION = re.compile(r"(^|\.)(query|key|value)_global(\.|$)")
# Linear layers of Jamba and other state space models, and of Gemma 3n, whose weights are read without calling the
# layer, so that an adapter has no effect. Doge's layer `dt_proj` selects tokens and gets no gradient.
_READ_AS_WEIGHTS = ("dt_proj", "altup.correction_coefs")
# The ending of the class name of layers that are skipped if there is no image.
_SKIPPED_WITHOUT_IMAGES = "MllamaCrossAttentionDecoderLayer"


def text_config(config: Any) -> Any:
    """Return the configuration of the text decoder. For most models, this is `config`."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def vocabulary_size(config: Any) -> int:
    """Return the number of rows of a model's embeddings."""
    return int(text_config(config).vocab_size)


def is_text(name: str) -> bool:
    """Return whether a name belongs to a module or parameter that processes text."""
    return _OTHER_INPUTS.search(name) is None and _GLOBAL_ATTENTION.search(name) is None


def text_filter(model: torch.nn.Module) -> Callable[[str], bool]:
    """Return a function that says whether a name in this model belongs to a part that processes text.

    Llama 3.2 Vision skips the layers with cross-attention to images if there is no image.
    """
    skipped = tuple(
        f"{name}." for name, module in model.named_modules() if type(module).__name__.endswith(_SKIPPED_WITHOUT_IMAGES)
    )
    return lambda name: is_text(name) and not f"{name}.".startswith(skipped)


def has_other_inputs(model: torch.nn.Module) -> bool:
    """Return whether a model has modules for images, audio or video, or others that a text does not pass through."""
    return any(not is_text(name) for name, _ in model.named_modules())


def linear_layers(model: Any) -> dict[str, torch.nn.Module]:
    """Return all linear layers of a model by name, except the output head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found = model.named_modules()
    return {name: one for name, one in found if isinstance(one, torch.nn.Linear | Conv1D) and one is not head}


def text_linear_layers(model: Any) -> list[str]:
    """Return the names of the linear layers that a text passes through, except the output head.

    Routers of experts, and layers whose weights are read without calling the layer, are left out.
    """
    is_used = text_filter(model)
    return [
        name
        for name, layer in linear_layers(model).items()
        if is_used(name) and not is_router(layer) and not name.endswith(_READ_AS_WEIGHTS)
    ]


def is_router(module: torch.nn.Module) -> bool:
    """Return whether a linear layer selects experts. It returns several tensors, which a layer of peft does not."""
    return isinstance(module, torch.nn.Linear) and type(module).__name__.endswith("Router")
