"""Load a model from its files, and refuse files without all of the model's weights.

transformers sets missing weights to random values and only logs a table.
"""

from __future__ import annotations

import functools
import logging
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.models.auto.auto_factory import _get_model_class

from petransfer.errors import UserError
from petransfer.models.checkpoint_files import (
    location,
    one_line_errors,
    read_configuration,
    runs_differently,
    use_default_outputs,
)
from petransfer.models.hashes import is_on_hub, weight_files
from petransfer.models.quiet_libraries import without_warnings
from petransfer.models.registry import is_embedded
from petransfer.models.rotary_positions import reset_dynamic_frequencies
from petransfer.models.support import supported_class
from petransfer.models.thread_turns import torch_state_lock
from petransfer.plurals import count
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.unreadable_files import refuse_unreadable

_log = logging.getLogger(__name__)
_READABLE = {".safetensors", ".bin"}
# The endings of tensor names that only weights quantised by bitsandbytes, GPTQ, AWQ or fp8 have.
_QUANTIZED_TENSOR = re.compile(
    r"\.(SCB|absmax|weight_format|quant_map|quant_state\.\S+|qweight|qzeros|weight_scale(_inv)?|weight_packed)$"
)
# The suffixes of all files with weights, and the pattern in the name of a file with a part of the weights.
_WEIGHT_SUFFIXES, _PART = (
    {*_READABLE, ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".pt", ".pth"},
    re.compile(r"-\d+-of-\d+\."),
)
_NUMBER = re.compile(r"\.\d+\.")


def refuse_damaged_files(checkpoint: CheckpointSpec) -> None:
    """Refuse a checkpoint on this machine with truncated files, or without all weights of its model.

    No weights are read.

    Raises:
        UserError: A file is missing, is truncated, lacks a tensor, or has a tensor of a wrong shape.
    """
    if checkpoint.reinit == "all":
        return
    if is_on_hub(checkpoint):
        refuse_missing_tensors(checkpoint)
        return
    with one_line_errors(checkpoint):
        refuse_cut_files(checkpoint)
        for name, path in weight_files(checkpoint, None).items():
            if path is None:
                raise OSError(f"{name} is missing")
    refuse_missing_tensors(checkpoint)


@functools.cache
def refuse_missing_tensors(checkpoint: CheckpointSpec) -> None:
    """Refuse a checkpoint whose files lack a tensor of the model. Only the names and shapes of tensors are read.

    Not checked are shipped checkpoints, checkpoints with weights in other formats, and hub checkpoints outside the
    cache.

    Raises:
        UserError: A tensor is missing, or has another shape than config.json says.
    """
    files = list(weight_files(checkpoint, None).values())
    if is_embedded(checkpoint.name) or not files or any(one is None or one.suffix not in _READABLE for one in files):
        return
    with one_line_errors(checkpoint):
        config = read_configuration(checkpoint)
        auto = supported_class(config, checkpoint.name)
    try:
        tensors: dict[str, torch.Tensor] = {}
        for path in files:
            tensors |= load_state_dict(str(path), map_location="meta")
        # transformers renames and joins tensors when it loads them, so it must do the comparison
        options = {"state_dict": tensors, "device_map": {"": "meta"}, "output_loading_info": True}
        kind = _get_model_class(config, auto._model_mapping)
        with without_warnings():
            model, found = kind.from_pretrained(None, config=config, ignore_mismatched_sizes=True, **options)
    except Exception as error:  # not all architectures support the meta device; loading then finds the mistake
        _log.debug("the tensors of %s were not compared with its configuration: %s", checkpoint.name, error)
        return
    _refuse_incomplete(model, found, location(checkpoint))


def refuse_cut_files(checkpoint: CheckpointSpec) -> None:
    """Refuse a checkpoint on this machine with truncated files or pointers of Git LFS. No weights are read."""
    if is_on_hub(checkpoint) or checkpoint.reinit == "all":
        return
    for path in sorted(Path(location(checkpoint)).glob("*.*")):
        if path.suffix in {".json", ".model", ".txt"}:  # an index of weight files, and the tokenizer
            refuse_unreadable(path)
    files = weight_files(checkpoint, None)
    if not files:
        raise OSError(_without_weights(Path(location(checkpoint))))
    for path in filter(None, files.values()):
        refuse_unreadable(path)
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):  # compares the size of the file with its header
                    pass
            except SafetensorError as error:
                if is_embedded(checkpoint.name):  # `one_line_errors` has the advice for a shipped checkpoint
                    raise
                raise UserError(f"{path} is damaged ({error}); get this file of the checkpoint again") from error
        elif path.suffix == ".bin" and _is_cut_zip(path):
            raise UserError(f"{path} is damaged (its end is missing); get this file of the checkpoint again")


def _without_weights(folder: Path) -> str:
    """Return an error text for a folder without model.safetensors, pytorch_model.bin or an index of their parts."""
    others = [path.name for path in sorted(folder.glob("*.*")) if path.suffix in _WEIGHT_SUFFIXES]
    part = next((name for name in others if _PART.search(name)), None)
    if part:
        return (
            f"{part} is a part of the weights, and {_PART.sub('.', part)}.index.json, which lists the parts, is missing"
        )
    instead = f", and {others[0]} is not read" if others else ""
    return f"it has neither model.safetensors nor pytorch_model.bin{instead}"


def _is_cut_zip(path: Path) -> bool:
    """Return whether a file begins like a zip file and has no end of one. PyTorch's older files are no zip files."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(file)


@torch_state_lock()
def load_complete(auto: Any, place: str, **options: Any) -> PreTrainedModel:
    """Load a model with `auto.from_pretrained`.

    Raises:
        UserError: A weight is missing, or has another shape than config.json says.
    """
    config = AutoConfig.from_pretrained(place, revision=options.get("revision"), trust_remote_code=False)
    if runs_differently(config):
        use_default_outputs(config)
        options["config"] = config
    model, found = auto.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    _refuse_incomplete(model, found, place)
    unused = _layers_beyond(found["unexpected_keys"], (name for name, _ in model.named_parameters()))
    if unused:
        _warn(
            f"warning: config.json of {place} has fewer layers than its weights: {unused[0]} and "
            f"{count(len(unused) - 1, 'other tensor')} are not used"
        )
    return_default_outputs(model)
    reset_dynamic_frequencies(model)
    loaded: PreTrainedModel = model
    return loaded


def return_default_outputs(model: PreTrainedModel) -> None:
    """Call `use_default_outputs` for all configurations of a model."""
    for module in model.modules():  # some parts of a model have a copy of its configuration
        if isinstance(getattr(module, "config", None), PreTrainedConfig):
            use_default_outputs(module.config)


def _refuse_incomplete(model: PreTrainedModel, found: Mapping[str, Any], place: str) -> None:
    """Raise UserError if a weight is missing or has a wrong shape. `found` is transformers' loading information."""
    for name, stored, wanted in [*sorted(found["mismatched_keys"], key=str), *_quantized_mismatches(model)]:
        raise UserError(
            f"{name} in the weights of {place} has the shape {tuple(stored)}, and config.json asks for "
            f"{tuple(wanted)}; get the checkpoint again, or correct its config.json"
        )
    scale = next((name for name in sorted(found["unexpected_keys"]) if _QUANTIZED_TENSOR.search(name)), None)
    if scale:
        raise UserError(
            f"the weights of {place} are quantised ({scale}), and config.json has no quantization_config; use the "
            "original, unquantised checkpoint, and choose the precision with bits"
        )
    parameters = {name for name, _ in model.named_parameters()}
    missing = sorted(name for name in parameters.intersection(found["missing_keys"]) if not _is_computed(model, name))
    if missing:
        raise UserError(
            f"the weights of {place} lack {missing[0]}"
            + (f" and {len(missing) - 1:,} other tensors" if len(missing) > 1 else "")
            + f" of a {type(model).__name__}, which would stay random; {_advice(missing)}"
        )


def _is_computed(model: PreTrainedModel, name: str) -> bool:
    """Return whether transformers computes a missing tensor: sinusoidal positions, which Pegasus' checkpoints lack."""
    return type(model.get_submodule(name.rpartition(".")[0])).__name__.endswith("SinusoidalPositionalEmbedding")


def _advice(missing: Sequence[str]) -> str:
    """Return what to do about missing tensors."""
    if all(name.endswith(("lm_head.weight", "embed_out.weight")) for name in missing):
        return (
            'if the output head is tied to the embeddings, write "tie_word_embeddings": true into config.json; '
            "otherwise get the checkpoint again"
        )
    return "get the checkpoint again, or name one of this architecture"


def _layers_beyond(unused: Iterable[str], parameters: Iterable[str]) -> list[str]:
    """Return the unused tensors of layers beyond the number of layers in config.json."""
    known = {_NUMBER.sub(".0.", name) for name in parameters}
    return sorted(name for name in unused if _NUMBER.search(name) and _NUMBER.sub(".0.", name) in known)


@functools.cache
def _warn(text: str) -> None:
    """Log a warning once per process: a training loads its base several times."""
    _log.warning("%s", text)


def _quantized_mismatches(model: torch.nn.Module) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Yield (name, shape, expected shape) of quantised weights with a wrong shape."""
    for name, module in model.named_modules():
        # transformers does not check the shapes of quantised weights
        if isinstance(module, torch.nn.Linear) and type(module) is not torch.nn.Linear:
            state = getattr(module.weight, "quant_state", None)
            stored = tuple(module.weight.shape if state is None else state.shape)
            wanted = (module.out_features, module.in_features)
            if stored != wanted:
                yield f"{name}.weight", stored, wanted
