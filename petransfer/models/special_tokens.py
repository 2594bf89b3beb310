"""Find a model's start, end and padding tokens in all files where checkpoints store them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from petransfer.data.encoding import Layout
from petransfer.errors import UserError
from petransfer.models.languages import STARTS_FROM_LANGUAGE, target_token
from petransfer.models.text_part import text_config

# The decoders of these families start with the padding token.
STARTS_FROM_PAD = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers", "pegasus", "pegasus_x"})


def layout_of(config: Any, tokenizer: PreTrainedTokenizerBase, generation: Any = None) -> Layout:
    """Return the layout of a model's examples: one sequence or two, and their special tokens.

    The tokens come from the tokenizer, config.json, the configuration of the text decoder, and generation_config.json.
    """
    text = text_config(config)
    places = (tokenizer, config, text, generation)
    rows = getattr(text, "vocab_size", None) or getattr(config, "vocab_size", None)
    ends = _found("eos_token_id", places, rows)
    if not ends:
        raise UserError(
            f"{_name(config)} has no end token: set eos_token_id in its config.json or eos_token in its tokenizer"
        )
    pads = _found("pad_token_id", places, rows)
    # the end token can replace a missing padding token, because padded positions are never read
    pad = pads[0] if pads else ends[0]
    if not config.is_encoder_decoder:
        return Layout(False, pad, ends[0])
    start, language = _start(config, text, tokenizer, generation, pad, rows), target_token(tokenizer)
    if language is not None and type(tokenizer).__name__ == STARTS_FROM_LANGUAGE:
        return Layout(True, pad, ends[0], language)
    return Layout(True, pad, ends[0], start, () if language is None else (language,))


def _start(config: Any, text: Any, tokenizer: Any, generation: Any, pad: int, rows: int | None) -> int:
    """Return the id of the token with which the decoder starts."""
    named = _found("decoder_start_token_id", (config, text, generation), None)
    if named and rows and named[0] >= rows:
        raise UserError(
            f"{_name(config)}: decoder_start_token_id is {named[0]}, and the embeddings have {rows:,} rows; correct it "
            "in config.json"
        )
    if named:
        return named[0]
    if config.model_type in STARTS_FROM_PAD:
        return pad
    begins = _found("bos_token_id", (text, config, generation, tokenizer), rows)
    return begins[0] if begins else pad


def _found(name: str, places: Sequence[Any], rows: int | None) -> list[int]:
    """Return all values of a special token in `places` that have an embedding row."""
    values: list[int] = []
    for place in places:
        value = getattr(place, name, None)
        values += value if isinstance(value, list) else [] if value is None else [value]
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    return [value for value in numbers if value >= 0 and (not rows or value < rows)]


def _name(config: Any) -> str:
    return str(getattr(config, "name_or_path", "") or config.model_type)
