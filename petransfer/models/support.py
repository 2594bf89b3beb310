"""Decide which architectures petransfer trains. `fit`, `plan`, `run` and `train` use this module."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from petransfer.errors import UserError
from petransfer.models.config_values import refuse_wrong_values

# Architectures that transformers (5.23) loads but computes wrongly, with the reason. petransfer does not correct umT5,
# because the adapters would then be wrong for everyone who loads them with plain transformers and peft.
COMPUTED_WRONGLY = {"umt5": "transformers scales umT5's logits as if its head were tied to its embeddings; use mT5"}

# Models with images whose text part alone, as transformers' class for text loads it, cannot be saved and loaded again:
# transformers has no such class for the type of the text part.
_TEXT_PART_CANNOT_BE_LOADED = frozenset({"emu3", "mllama"})

# Architectures for sound or images whose text decoder transformers also loads as a decoder-only model.
_NOT_FOR_TEXT = frozenset({"git", "moshi", "musicgen", "musicgen_melody", "trocr", "whisper"})


def supported_class(config: Any, name: str) -> Any:
    """Return the transformers auto class that loads a checkpoint for text-to-text training.

    Models that also read images are supported for text only.

    Raises:
        UserError: The model is encoder-only, for sound or images, or of an unknown kind, transformers computes it
            wrongly, its weights are already quantised, it has two vocabularies, or its configuration has wrong values.
    """
    kind = config.model_type
    refuse_wrong_values(config, name)
    if getattr(config, "decoder_vocab_size", None) not in (None, getattr(config, "vocab_size", None)):
        raise separate_vocabularies(name)
    if kind in COMPUTED_WRONGLY:
        raise UserError(f"{name} is not supported: {COMPUTED_WRONGLY[kind]}")
    refuse_already_quantized(config, name)
    if kind in _NOT_FOR_TEXT:
        raise UserError(
            f"{name} ({kind}) reads or writes sound or images, not texts alone; use an encoder-decoder or decoder-only "
            "checkpoint for text"
        )
    architectures = " ".join(getattr(config, "architectures", None) or [])
    if "EncoderModel" in architectures:
        raise _encoder_only(name, architectures)
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and config.is_encoder_decoder:
        if getattr(config, "audio_config", None) is not None or kind == "encoder-decoder":
            raise UserError(f"{name} ({kind}) is not supported; use a T5, BART, mBART, M2M100 or Marian checkpoint")
        return AutoModelForSeq2SeqLM
    # BERT-like models can be built as decoders, but their checkpoints were trained to attend in both directions.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise _encoder_only(name, kind)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in _TEXT_PART_CANNOT_BE_LOADED:
        return AutoModelForCausalLM
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not getattr(config, "is_encoder_decoder", False):
        return AutoModelForImageTextToText
    raise UserError(
        f"{name} ({kind}) cannot generate text with transformers {transformers.__version__}: it is encoder-only or of "
        "an unknown kind; use an encoder-decoder or decoder-only checkpoint"
    )


def separate_vocabularies(name: str) -> UserError:
    """Return the error for a checkpoint whose inputs and targets have different vocabularies."""
    return UserError(
        f"{name} has separate vocabularies for inputs and targets, which petransfer does not support; use a checkpoint "
        "with one vocabulary"
    )


def refuse_already_quantized(config: Any, name: str) -> None:
    """Raise UserError for a checkpoint whose weights are stored quantised."""
    own = getattr(config, "quantization_config", None)
    if own is not None:
        method = own.get("quant_method", "unknown") if isinstance(own, dict) else getattr(own, "quant_method", own)
        raise UserError(
            f"{name} is quantised already ({getattr(method, 'value', method)}); use the original, unquantised "
            "checkpoint, and choose the precision with bits"
        )


def _encoder_only(name: str, kind: str) -> UserError:
    return UserError(
        f"{name} ({kind}) is encoder-only: encoder-only models cannot generate text; use an encoder-decoder or "
        "decoder-only checkpoint"
    )
