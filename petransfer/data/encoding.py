"""Text to piece ids and back: what a model reads and should say, refused where the target would not come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from petransfer.data.task import Example
from petransfer.errors import UserError


class LostTarget(UserError):
    """A target that does not come back from its pieces. at: its place among those that were asked for."""

    def __init__(self, said: str, at: int = 0) -> None:  # the default for pickle, which knows the text alone
        super().__init__(said)
        self.at = at


@dataclass(frozen=True)
class Encoded:
    """One example as piece ids, both ending as the model family wants; `target_ids` ends with the end piece."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a model family takes its examples.

    encoder_decoder: input and target go in apart; otherwise the target follows the input in one sequence.
    decoder_start_id: what the decoder reads before the first target piece (encoder-decoder only).
    """

    encoder_decoder: bool
    pad_id: int
    eos_id: int
    decoder_start_id: int = 0


def encode_inputs(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, layout: Layout) -> list[tuple[int, ...]]:
    """The piece ids of inputs, prefix included. A decoder-only input ends in a line break before the target."""
    if layout.encoder_decoder:
        rows = tokenizer(list(texts), verbose=False)["input_ids"]
    else:
        rows = tokenizer([text + "\n" for text in texts], add_special_tokens=True, verbose=False)["input_ids"]
        rows = [row[:-1] if len(row) > 1 and row[-1] == layout.eos_id else row for row in rows]
    return [tuple(row) for row in rows]


def encode_targets(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, layout: Layout) -> list[tuple[int, ...]]:
    """The piece ids of targets, each ending in the end piece.

    Raises:
        LostTarget: a target does not come back from its pieces; the characters that are lost are named.
    """
    rows = tokenizer(text_target=list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    for at, (text, row, back) in enumerate(zip(texts, rows, decode(rows, tokenizer), strict=True)):
        if back != text or (tokenizer.unk_token_id in row and tokenizer.unk_token_id is not None):
            raise LostTarget(_lost(text, back, tokenizer), at)
    return [(*row, layout.eos_id) for row in rows]


def encode_examples(
    examples: Sequence[Example], prefix: str, tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> list[Encoded]:
    """Inputs, with the prefix before each, and targets.

    Raises:
        LostTarget: the tokenizer cannot give a target back.
    """
    inputs = encode_inputs([prefix + example.input for example in examples], tokenizer, layout)
    targets = encode_targets([example.target for example in examples], tokenizer, layout)
    return [Encoded(*pair) for pair in zip(inputs, targets, strict=True)]


def decode(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The strings that piece ids stand for, special pieces left out and blanks as they are."""
    return [
        str(tokenizer.decode(list(row), skip_special_tokens=True, clean_up_tokenization_spaces=False)) for row in rows
    ]


def _lost(text: str, back: str, tokenizer: PreTrainedTokenizerBase) -> str:
    gone = sorted({sign for sign in text if sign not in back}) or sorted(set(text) - {" "})[:5]
    named = " ".join(repr(sign) for sign in gone)
    kind = type(tokenizer).__name__
    return (
        f"the tokenizer ({kind}) cannot give the target {text[:60]!r} back: it loses {named}; take another checkpoint"
    )
