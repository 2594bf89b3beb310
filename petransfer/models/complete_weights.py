"""Load a model from its files, and refuse files that do not hold all of its weights.

transformers itself sets missing weights to random values and only logs a table. A model with random layers generates
meaningless texts, and an adapter that is trained on it fits no other copy of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from petransfer.errors import UserError


def load_complete(auto: Any, place: str, **options: Any) -> PreTrainedModel:
    """Load a model with `auto.from_pretrained`, and check that its files contain all weights in the right shapes.

    Args:
        auto: an auto class of transformers, such as `AutoModelForSeq2SeqLM`.
        place: the folder or hub id of the checkpoint.
        **options: other arguments of `from_pretrained`.

    Raises:
        UserError: a weight is missing, or its shape is not the shape that follows from config.json.
    """
    model, found = auto.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    for name, stored, wanted in [*sorted(found["mismatched_keys"], key=str), *_quantized_mismatches(model)]:
        raise UserError(
            f"{name} in the weights of {place} has the shape {tuple(stored)}, and config.json asks for "
            f"{tuple(wanted)}; get the checkpoint again, or correct its config.json"
        )
    parameters = {name for name, _ in model.named_parameters()}
    missing = sorted(parameters.intersection(found["missing_keys"]))
    if missing:
        raise UserError(
            f"the weights of {place} lack {missing[0]}"
            + (f" and {len(missing) - 1:,} other tensors" if len(missing) > 1 else "")
            + f" of a {type(model).__name__}, which would stay random; get the checkpoint again, or name one of this "
            "architecture"
        )
    loaded: PreTrainedModel = model
    return loaded


def _quantized_mismatches(model: torch.nn.Module) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Yield (name, shape, expected shape) of quantized weights with a wrong shape.

    transformers does not check the shapes of quantized weights.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and type(module) is not torch.nn.Linear:
            state = getattr(module.weight, "quant_state", None)
            stored = tuple(module.weight.shape if state is None else state.shape)
            wanted = (module.out_features, module.in_features)
            if stored != wanted:
                yield f"{name}.weight", stored, wanted
