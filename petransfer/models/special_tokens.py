"""Find a model's start, end and padding tokens in all files where checkpoints store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from petransfer.data.layout import Layout, special_tokens
from petransfer.errors import UserError
from petransfer.models.languages import STARTS_FROM_LANGUAGE, target_token
from petransfer.models.text_part import text_config

# The decoders of these families start with the padding token.
STARTS_FROM_PAD = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers", "pegasus", "pegasus_x"})


def layout_of(config: Any, tokenizer: PreTrainedTokenizerBase, generation: Any = None) -> Layout:
    """Return the layout of a model's examples: one sequence or two, and their special tokens.

    The tokens come from the tokenizer, config.json, the configuration of the text decoder, and generation_config.json.
    Generation stops at the end token and at `special_ends`.
    """
    layout = _with_one_end(config, tokenizer, generation)
    return _with_other_ends(layout, special_ends(config, tokenizer, generation))


def untrained_layout(layout: Layout, model: Any) -> Layout:
    """Return the layout of a model that petransfer did not train.

    Inputs are not changed, and generation stops at all tokens at which plain transformers stops.
    """
    ends = generation_ends(model.config, model.generation_config)
    return _with_other_ends(replace(layout, input_end=""), ends)


def special_ends(config: Any, tokenizer: PreTrainedTokenizerBase, generation: Any) -> list[int]:
    """Return the `generation_ends` that are special tokens: decoded text never shows them, so no target has them."""
    special = special_tokens(tokenizer)
    return [token for token in generation_ends(config, generation) if token in special]


def generation_ends(config: Any, generation: Any) -> list[int]:
    """Return the ids of the tokens at which plain transformers stops: of generation_config.json, else config.json."""
    text, rows = text_config(config), _rows(config)
    found = _token_values("eos_token_id", (generation,), rows) or _token_values("eos_token_id", (config, text), rows)
    return list(dict.fromkeys(found))


def declare_ends(model: Any, ends: Sequence[int]) -> None:
    """Add end tokens to a model's generation configuration, in place, so that plain transformers stops at them too.

    A chat ends with the token that the chat template writes after an answer. The base model may not declare this token.
    """
    declared = generation_ends(model.config, model.generation_config)
    missing = [token for token in ends if token not in declared]
    if missing:
        model.generation_config.eos_token_id = [*declared, *missing]


def _with_other_ends(layout: Layout, ends: Sequence[int]) -> Layout:
    return replace(layout, other_end_ids=tuple(token for token in ends if token != layout.eos_id))


def _with_one_end(config: Any, tokenizer: PreTrainedTokenizerBase, generation: Any) -> Layout:
    text = text_config(config)
    places = (tokenizer, config, text, generation)
    rows = _rows(config)
    ends = _token_values("eos_token_id", places, rows)
    if not ends:
        raise UserError(
            f"{_name(config)} has no end token: set eos_token_id in its config.json or eos_token in its tokenizer"
        )
    pads = _token_values("pad_token_id", places, rows)
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
    named = _token_values("decoder_start_token_id", (config, text, generation), None)
    if named and rows and named[0] >= rows:
        raise UserError(
            f"{_name(config)}: decoder_start_token_id is {named[0]}, and the embeddings have {rows:,} rows; correct it "
            "in config.json"
        )
    if named:
        return named[0]
    if config.model_type in STARTS_FROM_PAD:
        return pad
    begins = _token_values("bos_token_id", (text, config, generation, tokenizer), rows)
    return begins[0] if begins else pad


def _rows(config: Any) -> int | None:
    return getattr(text_config(config), "vocab_size", None) or getattr(config, "vocab_size", None)


def _token_values(name: str, places: Sequence[Any], rows: int | None) -> list[int]:
    """Return all values of a special token in `places` that have an embedding row."""
    values: list[int] = []
    for place in places:
        value = getattr(place, name, None)
        values += value if isinstance(value, list) else [] if value is None else [value]
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    return [value for value in numbers if value >= 0 and (not rows or value < rows)]


def _name(config: Any) -> str:
    return str(getattr(config, "name_or_path", "") or config.model_type)
