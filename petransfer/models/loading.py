"""Load checkpoints with 32, 16, 8 or 4 bits per weight. Some weights of control arms are random."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from petransfer.data.encoding import Layout
from petransfer.errors import UserError
from petransfer.models.added_tokens import add_tokens, draw_embeddings, refuse_unplaced_tokens
from petransfer.models.architecture import has_own_head
from petransfer.models.checkpoint_files import (
    generation_config,
    hub_commit,
    load_tokenizer,
    location,
    new_tokens,
    one_line_errors,
    read_configuration,
    revision,
)
from petransfer.models.complete_weights import load_complete, refuse_cut_files
from petransfer.models.control_arms import partly_random, randomly_initialized, write_partly_random
from petransfer.models.hub_access import refuse_unreachable
from petransfer.models.quantization import (
    check_quantizable,
    keep_default_packing,
    left_unquantized,
    quantization_config,
    refuse_poorly_quantized,
)
from petransfer.models.quiet_libraries import without_progress_bars
from petransfer.models.registry import checkpoint_spec
from petransfer.models.special_tokens import layout_of
from petransfer.models.support import supported_class
from petransfer.models.text_part import text_config
from petransfer.models.thread_turns import torch_state_lock
from petransfer.python_arguments import checked_device, checked_names, checked_path
from petransfer.recipe.run_spec import Bits, CheckpointSpec, unused_keep_wide

DTYPES: dict[int, torch.dtype] = {32: torch.float32, 16: torch.bfloat16}


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer and the layout of its examples.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        layout: Layout of the model's examples.
        commit: Hub commit of the weights. None: the weights are not from the hub.
        new_tokens: Ids of tokens without trained embeddings: added tokens, all tokens of random embeddings, and tokens
            that did not occur in the text of `petransfer pretrain`. Before a method is applied, `prepare` replaces them
            by the tokens whose embeddings the method trains.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    commit: str | None
    new_tokens: tuple[int, ...]


def load(
    checkpoint: str | Path,
    bits: Bits = 16,
    *,
    device: torch.device | str | None = None,
    keep_wide: Sequence[str] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained model and its tokenizer with 32, 16, 8 or 4 bits per weight.

    At 8 and 4 bits, every linear layer except the output head is quantised with bitsandbytes. This includes T5's `wo`
    layers, which plain transformers does not quantise. The model is a transformers model: train it with
    `peft.get_peft_model` and your own loop or `transformers.Trainer`.

    Args:
        checkpoint: Hub id (`google/flan-t5-large`, `owner/name@revision`), folder that `save_pretrained` wrote, or
            checkpoint shipped with petransfer (`nano/english`).
        bits: 32 (float32), 16 (bfloat16), 8 (LLM.int8) or 4 (NF4 with double quantisation).
        device: Device of the model. Default: the GPU if there is one, otherwise the CPU.
        keep_wide: Endings of the names of layers that stay at 16 bits. Only for 8 and 4 bits.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        UserError: The checkpoint cannot be found, is damaged or is not supported, these bits are not available, or no
            layer has a name in `keep_wide`.

    Example:
        >>> import petransfer
        >>> model, tokenizer = petransfer.load("nano/english", bits=4, device="cpu")
        >>> type(model.encoder.block[0].layer[1].DenseReluDense.wo).__name__
        'Linear4bit'
        >>> tokenizer.decode(tokenizer("walk twice")["input_ids"], skip_special_tokens=True)
        'walk twice'
    """
    if bits not in (32, 16, 8, 4):
        raise UserError(f"bits={bits!r} is not supported; use 32, 16, 8 or 4")
    name = checked_path(checkpoint, "checkpoint")
    place = checked_device(device) or ("cuda" if torch.cuda.is_available() else "cpu")
    wide = checked_names(keep_wide, "keep_wide")
    if wide and bits in DTYPES:
        raise UserError(unused_keep_wide(bits))
    found = checkpoint_spec(name)
    refuse_unreachable([found], with_weights=True)
    with without_progress_bars():
        loaded = load_checkpoint(found, bits, device=place, keep_wide=wide)
    return loaded.model.eval(), loaded.tokenizer


@torch_state_lock()
def load_checkpoint(
    checkpoint: CheckpointSpec,
    bits: Bits = 16,
    *,
    seed: int = 0,
    device: torch.device | str | None = "cpu",
    keep_wide: Sequence[str] = (),
) -> Loaded:
    """Load a checkpoint's model and tokenizer.

    `checkpoint.reinit` selects random weights: `none`, `embeddings` (input embeddings and an untied head), `body` (all
    other weights) or `all`. Random weights have transformers' initial distribution.

    Args:
        device: Device of the model. None: the host's memory, at 16 or 32 bits.
        keep_wide: Endings of the names of layers that are not quantised.

    Raises:
        UserError: The checkpoint cannot be found, is damaged or is not supported, or the hub cannot be reached.
    """
    if checkpoint.tokenizer and checkpoint.reinit not in {"embeddings", "all"}:
        raise UserError(
            f"{checkpoint.name} with the tokenizer of {checkpoint.tokenizer} needs reinit: embeddings or all"
        )
    with one_line_errors(checkpoint):
        commit = hub_commit(checkpoint)
        checkpoint = replace(checkpoint, weights=commit or checkpoint.weights)
        config = read_configuration(checkpoint)
        supported_class(config, checkpoint.name)  # before anything else is downloaded
        refuse_cut_files(checkpoint)
        tokenizer = load_tokenizer(replace(checkpoint, added_tokens=()))
        added = add_tokens(tokenizer, checkpoint.added_tokens)
        generation = generation_config(checkpoint)
        if checkpoint.tokenizer:
            _set_vocabulary(config, len(tokenizer))
        model = _model(config, checkpoint, bits, seed, device, keep_wide)
    # with FSDP, only one process reads the weights; the models of the other processes have no weights yet
    if bits in DTYPES and device is not None:
        model = model.to(device)
    draw_embeddings(model, added, checkpoint.name, seed)
    text_config(model.config).use_cache = True
    _never_drop_layers(model)
    layout = layout_of(config, tokenizer, generation)
    new = new_tokens(checkpoint, model.get_input_embeddings().num_embeddings)
    return Loaded(model, tokenizer, layout, commit, tuple(dict.fromkeys((*new, *added))))


@torch_state_lock()
def load_on_disk(checkpoint: CheckpointSpec, folder: str, seed: int = 0) -> Loaded:
    """Load a checkpoint at 16 bits with its weights left on disk. Each layer reads its weights when it runs.

    Random weights are written to `folder`. They are equal to the weights of `load_checkpoint`.
    """
    place, hub_revision = location(checkpoint), revision(checkpoint)
    with one_line_errors(checkpoint):
        config = read_configuration(checkpoint)
        tokenizer = load_tokenizer(checkpoint)
        auto = supported_class(config, checkpoint.name)
        if checkpoint.reinit != "none":
            if checkpoint.tokenizer:
                _set_vocabulary(config, len(tokenizer))
            _write_random(folder, auto, config, checkpoint, seed)
            place, hub_revision = folder, None
        model = _on_disk(auto, place, hub_revision, folder)
    return Loaded(model, tokenizer, layout_of(config, tokenizer, generation_config(checkpoint)), None, ())


def tokenizer_and_layout(checkpoint: CheckpointSpec, config: Any) -> tuple[PreTrainedTokenizerBase, Layout]:
    """Return a checkpoint's tokenizer and the layout of its examples, without loading the model.

    Raises:
        UserError: The tokenizer cannot be loaded, or the model has too few embedding rows for the added tokens.
    """
    with one_line_errors(checkpoint):
        tokenizer = load_tokenizer(checkpoint)
    if not checkpoint.tokenizer:  # otherwise the embeddings are drawn for this tokenizer
        refuse_unplaced_tokens(tokenizer, checkpoint.added_tokens, text_config(config).vocab_size, checkpoint.name)
    return tokenizer, layout_of(config, tokenizer, generation_config(checkpoint))


def _model(
    config: Any,
    checkpoint: CheckpointSpec,
    bits: Bits,
    seed: int,
    device: torch.device | str | None,
    keep_wide: Sequence[str],
) -> PreTrainedModel:
    """Load a model: on the CPU at 16 and 32 bits, on `device` at 8 and 4 bits."""
    auto, place, hub_revision = supported_class(config, checkpoint.name), location(checkpoint), revision(checkpoint)
    if bits in DTYPES:
        return _unquantized(auto, config, checkpoint, DTYPES[bits], seed)
    assert device is not None  # bitsandbytes quantises on the device that computes
    device = torch.device(device)
    check_quantizable(bits, device)
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint.reinit != "none":  # write random weights to a folder, to quantise them like pretrained weights
            _write_random(folder, auto, config, checkpoint, seed)
            place, hub_revision = folder, None
        model = _quantized(auto, place, hub_revision, bits, device, keep_wide)
    refuse_poorly_quantized(model, checkpoint.name, bits, keep_wide)
    return model


def _unquantized(auto: Any, config: Any, checkpoint: CheckpointSpec, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    def pretrained() -> PreTrainedModel:
        return load_complete(auto, location(checkpoint), revision=revision(checkpoint), dtype=dtype)

    if checkpoint.reinit == "none":
        return pretrained()
    torch.manual_seed(seed)
    new = randomly_initialized(auto, config, _has_own_head(checkpoint))
    return partly_random(new, pretrained, checkpoint.reinit, dtype)


def _write_random(folder: str, auto: Any, config: Any, checkpoint: CheckpointSpec, seed: int) -> None:
    write_partly_random(
        folder,
        lambda: randomly_initialized(auto, config, _has_own_head(checkpoint)),
        lambda parts: _on_disk(auto, location(checkpoint), revision(checkpoint), parts),
        checkpoint.reinit,
        seed,
    )


def _has_own_head(checkpoint: CheckpointSpec) -> bool:
    content, _ = PreTrainedConfig.get_config_dict(location(checkpoint), revision=revision(checkpoint))
    return has_own_head(content, location(checkpoint))


def _quantized(
    auto: Any, place: str, hub_revision: str | None, bits: Bits, device: torch.device, keep_wide: Sequence[str]
) -> PreTrainedModel:
    """Load a model and quantise it tensor by tensor, to save memory."""
    config = AutoConfig.from_pretrained(place, revision=hub_revision)
    with left_unquantized(auto._model_mapping[type(config)], keep_wide):
        model = load_complete(
            auto,
            place,
            revision=hub_revision,
            quantization_config=quantization_config(bits),
            dtype=torch.bfloat16,
            device_map={"": str(device)},
        )
    keep_default_packing(model)
    wide = [name for name, module in model.named_modules() if type(module) in (torch.nn.Linear, Conv1D)]
    for ending in keep_wide:
        if not any(name.endswith(ending) for name in wide):
            raise UserError(f"keep_wide: no layer's name ends in '{ending}'")
    return model


def _on_disk(auto: Any, place: str, hub_revision: str | None, folder: str) -> PreTrainedModel:
    options = {"dtype": torch.bfloat16, "device_map": {"": "disk"}, "offload_folder": folder}
    return load_complete(auto, place, revision=hub_revision, **options)


def _set_vocabulary(config: Any, size: int) -> None:
    for part in (config, text_config(config)):
        if hasattr(part, "vocab_size"):
            part.vocab_size = size


def _never_drop_layers(model: torch.nn.Module) -> None:
    """Turn layer drop off: the adapter of a dropped layer would get no gradient."""
    for module in model.modules():
        if getattr(module, "layerdrop", 0.0):
            module.layerdrop = 0.0  # type: ignore[assignment]
