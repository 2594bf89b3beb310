"""Loads a checkpoint in the bits that were asked for, with parts of it drawn anew for the control arms."""

from __future__ import annotations

import contextlib
import errno
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from petransfer.data.encoding import Layout
from petransfer.errors import UserError
from petransfer.models.architecture import has_own_head
from petransfer.models.file_backed import FileBackedTensors, copy_parameter
from petransfer.models.quantization import (
    check_quantizable,
    keep_default_packing,
    left_unquantized,
    quantization_config,
    refuse_already_quantized,
    refuse_poorly_quantized,
)
from petransfer.models.registry import NANO, checkpoint_spec, embedded_folder, is_embedded
from petransfer.models.saving import save_model
from petransfer.recipe.run_spec import Bits, CheckpointSpec, Reinit

# Architectures that transformers loads and computes wrongly (seen with 5.23). umT5's configuration always says that its
# embeddings are tied, and then its logits are scaled. Put right here alone, it would give adapters that are wrong for
# whoever loads them with plain transformers and peft, which go on scaling.
WRONG = {"umt5": "transformers scales umT5's logits as if its head were tied to its embeddings; take mT5"}

# A file of a model that is drawn anew: as much of it is in memory at once while it is written.
SHARD = "128MB"

DTYPES: dict[int, torch.dtype] = {32: torch.float32, 16: torch.bfloat16}


@dataclass(frozen=True)
class Loaded:
    """A model with what is needed to feed it.

    commit: the hub commit that the weights came from, None where they came from a folder.
    new_tokens: pieces that pretraining never saw, so that their embeddings mean nothing yet. A checkpoint that comes
        with its own tokenizer is taken to have seen all, unless `petransfer pretrain` made it, which counts.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    commit: str | None
    new_tokens: tuple[int, ...]


def load(
    checkpoint: str,
    bits: Bits = 16,
    *,
    device: torch.device | str | None = None,
    keep_wide: Sequence[str] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained model and its tokenizer at 32, 16, 8 or 4 bits a weight.

    At 8 and 4 bits every linear layer except the output head is quantized with bitsandbytes, T5's `wo` included, which
    plain transformers leaves at 16 bits. The model is a transformers model: train it with `peft.get_peft_model` and
    your own loop or `transformers.Trainer`.

    Args:
        checkpoint: a hub id (`google/flan-t5-large`, `owner/name@revision`), a folder that `save_pretrained` wrote, or
            an embedded checkpoint (`nano/english`).
        bits: 32 (float32), 16 (bfloat16), 8 (LLM.int8) or 4 (NF4 with double quantization).
        device: where to put the model; the GPU where there is one, else the CPU.
        keep_wide: layers whose names end in one of these stay at 16 bits.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        UserError: the checkpoint cannot be found, is damaged or is not supported, or these bits are not available.

    Example:
        >>> import petransfer
        >>> model, tokenizer = petransfer.load("nano/english", bits=4, device="cpu")
        >>> type(model.encoder.block[0].layer[1].DenseReluDense.wo).__name__
        'Linear4bit'
        >>> tokenizer.decode(tokenizer("walk twice")["input_ids"], skip_special_tokens=True)
        'walk twice'
    """
    if bits not in (32, 16, 8, 4):
        raise UserError(f"bits={bits!r} is not a width that petransfer loads; use 32, 16, 8 or 4")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_checkpoint(checkpoint_spec(checkpoint), bits, device=place, keep_wide=keep_wide)
    return loaded.model.eval(), loaded.tokenizer


def load_checkpoint(
    checkpoint: CheckpointSpec,
    bits: Bits = 16,
    *,
    seed: int = 0,
    device: torch.device | str | None = "cpu",
    keep_wide: Sequence[str] = (),
) -> Loaded:
    """The checkpoint's model on `device` and its tokenizer.

    device: None leaves it in the host's memory or, where transformers lets one process read for all, without numbers.

    reinit is drawn from `seed` by the model's own initialisation: `embeddings` draws the input embeddings (and an
    untied head) anew, `body` all but them, `all` everything; the checkpoint's configuration and tokenizer stay.

    keep_wide: endings of the names of layers that are not quantised.

    Raises:
        UserError: it cannot be found, is damaged, is encoder-only, or the hub cannot be reached.
    """
    if checkpoint.tokenizer and checkpoint.reinit not in {"embeddings", "all"}:
        raise UserError(
            f"{checkpoint.name} with the tokenizer of {checkpoint.tokenizer} needs reinit embeddings or all"
        )
    place = _place(checkpoint)
    with _plain_errors(checkpoint):
        commit = _commit(checkpoint)
        checkpoint = replace(checkpoint, weights=commit or checkpoint.weights)
        config = AutoConfig.from_pretrained(place, revision=_revision(checkpoint))
        model_class(config, checkpoint.name)  # refuses before anything else is looked for
        tokenizer = _tokenizer(checkpoint)
        if checkpoint.tokenizer:
            config.vocab_size = len(tokenizer)
        place_on = None if device is None else torch.device(device)
        model = _model(place, config, checkpoint, bits, seed, place_on, keep_wide)
    model.config.use_cache = True
    new = new_tokens(checkpoint, model.get_input_embeddings().num_embeddings)
    return Loaded(model, tokenizer, layout_of(config, tokenizer), commit, new)


def model_class(config: Any, name: str) -> Any:
    """Which auto class makes this architecture.

    Raises:
        UserError: it generates nothing (encoder-only), or transformers computes it wrongly.
    """
    if config.model_type in WRONG:
        raise UserError(f"{name} is not supported: {WRONG[config.model_type]}")
    architectures = " ".join(getattr(config, "architectures", None) or [])
    if "EncoderModel" in architectures:
        raise UserError(f"{name} is encoder-only ({architectures}): it cannot say a target; take a full checkpoint")
    if config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    # BERT and its kin can be made into decoders, but their checkpoints read both ways.
    if config.model_type in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        return AutoModelForCausalLM
    raise UserError(f"{name} ({config.model_type}) is encoder-only or unknown: it cannot say a target")


def _model(
    place: str,
    config: Any,
    checkpoint: CheckpointSpec,
    bits: Bits,
    seed: int,
    device: torch.device | None,
    keep_wide: Sequence[str],
) -> PreTrainedModel:
    auto = model_class(config, checkpoint.name)
    if bits in DTYPES:
        refuse_already_quantized(config, checkpoint.name)
        model = _with_reinit(auto, place, config, checkpoint, DTYPES[bits], seed)
        return model if device is None else model.to(device)
    assert device is not None  # bitsandbytes quantises where it computes
    check_quantizable(config, checkpoint.name, bits, device)
    with tempfile.TemporaryDirectory() as folder:
        revision = _revision(checkpoint)
        if checkpoint.reinit != "none":  # what is drawn anew is quantised like any other checkpoint: from a folder
            _draw_into(folder, auto, place, config, checkpoint, seed)
            place, revision = folder, None
        model = _quantised(auto, place, revision, bits, device, keep_wide)
    refuse_poorly_quantized(model, checkpoint.name, bits, keep_wide)
    return model


def _with_reinit(
    auto: Any, place: str, config: Any, checkpoint: CheckpointSpec, dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    reinit: Reinit = checkpoint.reinit

    def trained() -> PreTrainedModel:
        model: PreTrainedModel = auto.from_pretrained(place, revision=_revision(checkpoint), dtype=dtype)
        return model

    if reinit == "none":
        return trained()
    torch.manual_seed(seed)
    new = randomly_initialized(auto, config, _has_own_head(place, checkpoint)).to(dtype)
    if reinit != "all":
        _copy(trained(), new, embeddings=reinit == "body")
    return new


def _draw_into(folder: str, auto: Any, place: str, config: Any, checkpoint: CheckpointSpec, seed: int) -> None:
    """Writes the model that `_with_reinit` gives in bf16, the same to the bit, and never holds it."""
    with tempfile.TemporaryDirectory(dir=folder) as parts:
        files = FileBackedTensors(parts)
        torch.manual_seed(seed)
        with files:
            new = randomly_initialized(auto, config, _has_own_head(place, checkpoint))
        files.narrow(new, torch.bfloat16)
        if checkpoint.reinit != "all":
            trained = _on_disk(auto, place, _revision(checkpoint), parts)
            _copy(trained, new, embeddings=checkpoint.reinit == "body")
        save_model(new, folder, max_shard_size=SHARD)


def randomly_initialized(auto: Any, config: Any, own_head: bool) -> PreTrainedModel:
    """A model drawn by its own initialisation, in fp32. own_head: its head is not tied to its embeddings.

    transformers ties the head of every new T5, whatever the configuration says (that of a checkpoint it leaves alone):
    the head of T5 v1.1, mT5 and their kin is drawn here, with the deviation that T5 starts embeddings and heads at.
    """
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if own_head and head is not None and head.weight is embeddings.weight:
        drawn = torch.empty_like(embeddings.weight).normal_(std=getattr(config, "initializer_factor", 1.0))
        head.weight = torch.nn.Parameter(drawn)
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    return model


def _has_own_head(place: str, checkpoint: CheckpointSpec) -> bool:
    content, _ = PreTrainedConfig.get_config_dict(place, revision=_revision(checkpoint))
    return has_own_head(content)


@torch.no_grad()
def _copy(source: PreTrainedModel, target: PreTrainedModel, embeddings: bool) -> None:
    """Copies the input embeddings and an untied head, or all but them."""
    ends = {
        id(end.weight) for end in (target.get_input_embeddings(), target.get_output_embeddings()) if end is not None
    }
    for name, value in target.named_parameters():
        if (id(value) in ends) == embeddings:
            copy_parameter(source, name, value)


def _quantised(
    auto: Any, place: str, revision: str | None, bits: Bits, device: torch.device, keep_wide: Sequence[str]
) -> PreTrainedModel:
    """Read and quantised tensor by tensor, so that the host never holds the wide model."""
    config = AutoConfig.from_pretrained(place, revision=revision)
    with left_unquantized(auto._model_mapping[type(config)], keep_wide):
        model: PreTrainedModel = auto.from_pretrained(
            place,
            revision=revision,
            quantization_config=quantization_config(bits),
            dtype=torch.bfloat16,
            device_map={"": str(device)},
        )
    keep_default_packing(model)
    for ending in keep_wide:
        if not any(name.endswith(ending) and type(module) is torch.nn.Linear for name, module in model.named_modules()):
            raise UserError(f"keep_wide: no layer's name ends in '{ending}'")
    return model


def load_on_disk(checkpoint: CheckpointSpec, folder: str, seed: int = 0) -> Loaded:
    """The checkpoint at 16 bits with its weights left on the disk, from where each layer reads them when it runs.

    folder: for what cannot be read where it lies, and what is drawn anew, as `load` does it.
    """
    place, revision = _place(checkpoint), _revision(checkpoint)
    with _plain_errors(checkpoint):
        config = AutoConfig.from_pretrained(place, revision=revision)
        tokenizer = _tokenizer(checkpoint)
        auto = model_class(config, checkpoint.name)
        if checkpoint.reinit != "none":
            if checkpoint.tokenizer:
                config.vocab_size = len(tokenizer)
            _draw_into(folder, auto, place, config, checkpoint, seed)
            place, revision = folder, None
        model = _on_disk(auto, place, revision, folder)
    return Loaded(model, tokenizer, layout_of(config, tokenizer), None, ())


def _on_disk(auto: Any, place: str, revision: str | None, folder: str) -> PreTrainedModel:
    model: PreTrainedModel = auto.from_pretrained(
        place, revision=revision, dtype=torch.bfloat16, device_map={"": "disk"}, offload_folder=folder
    )
    return model


def layout_of(config: Any, tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Return how a model with this configuration and tokenizer takes its examples."""
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else config.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    if not config.is_encoder_decoder:
        return Layout(False, int(pad), int(eos))
    start = config.decoder_start_token_id
    return Layout(True, int(pad), int(eos), int(pad if start is None else start))


def tokenizer_and_layout(checkpoint: CheckpointSpec, config: Any) -> tuple[PreTrainedTokenizerBase, Layout]:
    """The tokenizer, and how the model takes its examples, without the model."""
    with _plain_errors(checkpoint):
        tokenizer = _tokenizer(checkpoint)
    return tokenizer, layout_of(config, tokenizer)


def new_tokens(checkpoint: CheckpointSpec, vocabulary: int) -> tuple[int, ...]:
    """The pieces that pretraining never saw, of so many in all; see `Loaded`."""
    if checkpoint.reinit in {"embeddings", "all"}:
        return tuple(range(vocabulary))
    card = Path(_place(checkpoint)) / "pretraining.json"  # written by `petransfer pretrain`
    return tuple(json.loads(card.read_text(encoding="utf-8"))["new_pieces"]) if card.is_file() else ()


def _place(checkpoint: CheckpointSpec) -> str:
    if is_embedded(checkpoint.name):
        return str(embedded_folder(checkpoint.name))
    return checkpoint.source or checkpoint.name


def _tokenizer(checkpoint: CheckpointSpec) -> PreTrainedTokenizerBase:
    if checkpoint.tokenizer and not checkpoint.tokenizer_source:
        return _tokenizer(checkpoint_spec(checkpoint.tokenizer))
    embedded = is_embedded(checkpoint.name) and not checkpoint.tokenizer
    place = checkpoint.tokenizer_source or (str(NANO / "tokenizer") if embedded else _place(checkpoint))
    revision = None if checkpoint.tokenizer_source else _revision(checkpoint)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, revision=revision)
    return tokenizer


def _revision(checkpoint: CheckpointSpec) -> str | None:
    return None if checkpoint.source or is_embedded(checkpoint.name) else checkpoint.weights


def _commit(checkpoint: CheckpointSpec) -> str | None:
    """The hub commit that a revision stands for now; all files are then taken from it."""
    revision = _revision(checkpoint)
    return extract_commit_hash(cached_file(checkpoint.name, CONFIG_NAME, revision=revision), None) if revision else None


@contextlib.contextmanager
def _plain_errors(checkpoint: CheckpointSpec) -> Iterator[None]:
    """Says what is wrong with a checkpoint in one line."""
    name = checkpoint.source or checkpoint.name
    try:
        yield
    except (SafetensorError, OSError) as error:
        if getattr(error, "errno", 0) == errno.ENOSPC or "os error 28" in str(error):
            place, need = tempfile.gettempdir(), "what is drawn anew takes 4 bytes a parameter there"
            raise UserError(f"{place} is too full to load {name} ({need}); set TMPDIR to a folder with room") from error
        if isinstance(error, OSError):
            raise _not_there(checkpoint, error) from error
        raise UserError(f"the weights in {name} are damaged ({error}); get the checkpoint again") from error
    except (ValueError, KeyError) as error:
        raise _not_there(checkpoint, error) from error


def _not_there(checkpoint: CheckpointSpec, error: Exception) -> UserError:
    first = str(error).strip().split("\n")[0][:200]
    if checkpoint.source:
        return UserError(f"{checkpoint.source} cannot be loaded ({first}); name a folder that save_pretrained wrote")
    hint = "without a network, download it elsewhere and name its folder, or take the embedded family nano"
    return UserError(f"{checkpoint.name} could not be loaded from the hub or its cache ({first}); {hint}")
