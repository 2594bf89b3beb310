"""Load a model from its files, and refuse files that do not hold all of its weights.

transformers itself sets missing weights to random values and only logs a table. A model with random layers generates
meaningless texts, and an adapter that is trained on it fits no other copy of the base model.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from petransfer.errors import UserError
from petransfer.models.checkpoint_files import one_line_errors
from petransfer.models.hashes import is_on_hub, weight_files
from petransfer.plurals import count
from petransfer.recipe.run_spec import CheckpointSpec

_log = logging.getLogger(__name__)
_NUMBER = re.compile(r"\.\d+\.")


def refuse_damaged_files(checkpoint: CheckpointSpec) -> None:
    """Refuse a checkpoint on this machine whose weight files are missing or cut short. No weights are read.

    Raises:
        UserError: a file is missing, or is shorter than its header says.
    """
    if is_on_hub(checkpoint) or checkpoint.reinit == "all":
        return
    with one_line_errors(checkpoint):
        files = weight_files(checkpoint, None)
        if not files:
            raise OSError("it has neither model.safetensors nor pytorch_model.bin")
        for name, path in files.items():
            if path is None:
                raise OSError(f"{name} is missing")
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):  # compares the size of the file with its header
                    pass


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
    unused = _layers_beyond(found["unexpected_keys"], parameters)
    if unused:
        _warn(
            f"warning: config.json of {place} has fewer layers than its weights: {unused[0]} and "
            f"{count(len(unused) - 1, 'other tensor')} are not used"
        )
    loaded: PreTrainedModel = model
    return loaded


def _layers_beyond(unused: Iterable[str], parameters: Iterable[str]) -> list[str]:
    """Return the unused tensors of layers that the model would have if config.json said a larger number of layers."""
    known = {_NUMBER.sub(".0.", name) for name in parameters}
    return sorted(name for name in unused if _NUMBER.search(name) and _NUMBER.sub(".0.", name) in known)


@functools.cache
def _warn(text: str) -> None:
    """Log a warning once, because a training loads its base several times."""
    _log.warning("%s", text)


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
