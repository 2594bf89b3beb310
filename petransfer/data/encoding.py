"""Encode texts as token ids, and decode them. A target must be reproduced exactly by decoding."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from petransfer.data.answers import text_answer
from petransfer.data.bad_rows import BadRow, visible
from petransfer.data.chat import render_chat
from petransfer.data.layout import Layout, special_tokens
from petransfer.data.task import Example
from petransfer.data.thoughts import without_doubled_tag
from petransfer.errors import UserError

__all__ = [
    "Encoded",
    "Layout",
    "decode",
    "encodable",
    "encode_examples",
    "encode_inputs",
    "encode_targets",
    "lost_characters",
    "target_problem",
]

CHANGED = "the tokenizer changes blanks or line breaks inside the target"
LOST = "the tokenizer loses characters of the target"
NO_TOKENS = "the input has no tokens"
ADVICE = "use a checkpoint whose tokenizer has these characters, replace the characters, or skip the rows"


@dataclass(frozen=True)
class Encoded:
    """The token ids of one example, with special tokens. `target_ids` ends with the end token."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


def encode_inputs(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, layout: Layout, is_rendered: bool = False
) -> list[tuple[int, ...]]:
    """Return the token ids of inputs. For a decoder-only model, each input is followed by `layout.input_end`.

    Args:
        is_rendered: Whether a chat template wrote the texts. Then no special token and no text is added.
    """
    if is_rendered:
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    elif layout.encoder_decoder:
        rows = tokenizer(list(texts), verbose=False)["input_ids"]
    else:
        given = [text + layout.input_end for text in texts]
        rows = tokenizer(given, add_special_tokens=True, verbose=False)["input_ids"]
        rows = [row[:-1] if len(row) > 1 and row[-1] == layout.eos_id else row for row in rows]
    return [tuple(row) for row in rows]


def encode_targets(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, layout: Layout) -> list[tuple[int, ...]]:
    """Return the token ids of each target, including the end token.

    Raises:
        UserError: Decoding does not reproduce a target.
    """
    rows = _target_rows(texts, tokenizer)
    for text, row, back in zip(texts, rows, decode(rows, tokenizer), strict=True):
        problem = target_problem(text, row, back, tokenizer)
        if problem:
            kind = type(tokenizer).__name__
            raise UserError(f"the tokenizer ({kind}) cannot reproduce the target {visible(text)}: {problem}; {ADVICE}")
    return [(*row, layout.eos_id) for row in rows]


def encodable(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, layout: Layout) -> tuple[str, ...]:
    """Return the targets that the tokenizer reproduces exactly: encoding and decoding give the same text."""
    found = []
    for text in texts:
        with contextlib.suppress(UserError):
            encode_targets([text], tokenizer, layout)
            found.append(text)
    return tuple(found)


def encode_examples(
    examples: Sequence[Example], prefix: str, tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> list[Encoded]:
    """Return the token ids of examples, with `prefix` before each input.

    Raises:
        UserError: An input has no tokens, or decoding does not reproduce a target.
        BadRow: The chat template refuses a chat, or cannot write an answer.
    """
    examples = [text_answer(example, tokenizer, layout) for example in examples]
    inputs = [input_text(example, prefix, tokenizer) for example in examples]
    sources = encode_inputs(inputs, tokenizer, layout, _is_rendered(examples))
    refuse_without_tokens(inputs, sources)
    targets = encode_targets([example.target for example in examples], tokenizer, layout)
    return [Encoded(*pair) for pair in zip(sources, targets, strict=True)]


def encode_checked(
    examples: Sequence[Example], prefix: str, tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> list[Encoded | BadRow]:
    """Return the token ids of each usable example, and a `BadRow` for each unusable example."""
    found: list[Encoded | BadRow] = []
    inputs: list[str] = []
    problems: dict[int, BadRow] = {}
    examples = list(examples)
    for at, given in enumerate(examples):
        try:
            examples[at] = text_answer(given, tokenizer, layout)
            inputs.append(input_text(examples[at], prefix, tokenizer))
        except BadRow as refused:
            inputs.append("")
            problems[at] = refused
    sources = encode_inputs(inputs, tokenizer, layout, _is_rendered(examples))
    rows = _target_rows([example.target for example in examples], tokenizer)
    backs = decode(rows, tokenizer)
    for at, (example, source, row, back) in enumerate(zip(examples, sources, rows, backs, strict=True)):
        problem = problems.get(at) or target_problem(example.target, row, back, tokenizer)
        problem = problem or (None if source else BadRow(NO_TOKENS, visible(inputs[at])))
        found.append(problem or Encoded(source, (*row, layout.eos_id)))
    return found


def input_text(example: Example, prefix: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of an example's input, with `prefix`. A chat is converted to text."""
    if not example.chat:
        return prefix + example.input
    return without_doubled_tag(render_chat(example.input, prefix, tokenizer, example.chat), example.target)


def refuse_without_tokens(texts: Sequence[str], rows: Sequence[tuple[int, ...]]) -> None:
    """Raise UserError if an input has no tokens, because a decoder-only model needs at least one to generate."""
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise UserError(f"{NO_TOKENS}: {visible(text)}; write a text")


def decode(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Decode rows of token ids to texts, without special tokens. Blanks are not changed."""
    return [
        str(tokenizer.decode(list(row), skip_special_tokens=True, clean_up_tokenization_spaces=False)) for row in rows
    ]


def target_problem(text: str, row: Sequence[int], back: str, tokenizer: PreTrainedTokenizerBase) -> BadRow | None:
    """Return why the model cannot generate a target exactly. None if the model can.

    Args:
        row: Token ids of the target, without the end token.
        back: The text decoded from `row`.
    """
    has_unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in row
    if back == text and not has_unknown:
        return None
    special = sorted(token for token in special_tokens(tokenizer).values() if token and token in text)
    if special:
        return BadRow(
            "the target contains a special token; generated texts never contain special tokens",
            f"{special[0]} in {visible(text)}",
        )
    gone = lost_characters(text, back)
    if not gone and back.strip() == text.strip():
        return BadRow("the tokenizer drops the blanks at the ends of the target", visible(text))
    if not gone and "".join(back.split()) == "".join(text.split()):
        return BadRow(CHANGED, visible(text))
    named = " ".join(repr(sign) for sign in gone or sorted(set(text) - {" "})[:5])
    return BadRow(LOST, f"{named} in {visible(text)}")


def lost_characters(text: str, back: str) -> list[str]:
    """Return the characters of `text` that are missing from the decoded text `back`. Blanks are ignored."""
    return sorted({sign for sign in text if sign not in back and not sign.isspace()})


def _target_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # M2M100's tokenizer cannot encode targets if no language is set. They are then encoded as inputs, which have the
    # same vocabulary.
    as_inputs = hasattr(tokenizer, "lang_code_to_token") and tokenizer.tgt_lang is None
    given = {"text" if as_inputs else "text_target": list(texts)}
    rows: list[list[int]] = tokenizer(**given, add_special_tokens=False, verbose=False)["input_ids"]
    return rows


def _is_rendered(examples: Sequence[Example]) -> bool:
    return bool(examples) and examples[0].chat == "template"
