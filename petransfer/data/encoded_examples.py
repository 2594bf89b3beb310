"""Encode the parts of a split as token ids and check the examples, before a model is loaded."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from petransfer.data.answers import UntrainedCall, ignored_thought, text_answer_or_same, text_answers, without
from petransfer.data.bad_rows import BadRow, BadRows
from petransfer.data.chat import heading_note, quoted_note, quoted_special_tokens, render_chat, tools_note
from petransfer.data.encoding import (
    CHANGED,
    LOST,
    Encoded,
    Layout,
    decode,
    encode_checked,
    encode_examples,
    input_text,
)
from petransfer.data.rows.chat_notes import thoughts_notes
from petransfer.data.rows.stored_rows import StoredRows
from petransfer.data.task import PARTS, Example, SplitData
from petransfer.data.thoughts import tag_counts, tag_notes
from petransfer.errors import UserError
from petransfer.plurals import count

# If a part on disk has more examples than this, its token ids are not kept in memory but computed at each access.
KEPT = 20_000
_CHUNK = 1000
# About this many inputs of each part are checked for characters that the tokenizer loses.
_INPUTS_CHECKED = 2000

TooLong = Callable[[Encoded], BadRow | None]
"""Function that returns why an example is too long for the model. None if it is not too long."""


class LazilyEncoded(Sequence[Encoded]):
    """The token ids of examples on disk. An example is encoded at each access."""

    def __init__(
        self, examples: Sequence[Example], prefix: str, tokenizer: PreTrainedTokenizerBase, layout: Layout
    ) -> None:
        self.examples, self._prefix, self._tokenizer, self._layout = examples, prefix, tokenizer, layout

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...
    def __getitem__(self, at: int | slice) -> Encoded | list[Encoded]:
        return self.take(range(*at.indices(len(self)))) if isinstance(at, slice) else self.take([at])[0]

    def take(self, positions: Iterable[int]) -> list[Encoded]:
        """Encode the examples at these positions in one call, which is faster than one by one."""
        return encode_examples([self.examples[at] for at in positions], self._prefix, self._tokenizer, self._layout)


def take(encoded: Sequence[Encoded], positions: Sequence[int]) -> list[Encoded]:
    """Return the encoded examples at these positions."""
    if isinstance(encoded, LazilyEncoded):
        return encoded.take(positions)
    return [encoded[at] for at in positions]


@dataclass
class EncodedPart:
    """One part of a split (train, dev or test) as token ids.

    Args:
        examples: The usable examples.
        encoded: Token ids of `examples`, in memory or encoded at every access.
        token_ids: All token ids in the checked examples; see `encode_part`.
        bad: Position and reason of each unusable example.
        changed_inputs: For each character that the tokenizer loses, the number of inputs with this character.
        inputs_checked: Number of inputs that were checked for lost characters.
        quoting: Number of chats whose messages contain special tokens as text.
        quoted: These special tokens.
        thoughts: For each field with thoughts, the number of answers where the chat template does not write it.
        tags: Number of answers that begin with a thought's tag or do not close it; see `tag_counts`.
    """

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    token_ids: set[int]
    bad: list[tuple[int, BadRow]] = field(default_factory=list)
    changed_inputs: Counter[str] = field(default_factory=Counter)
    inputs_checked: int = 0
    quoting: int = 0
    quoted: set[str] = field(default_factory=set)
    thoughts: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class EncodedSplit:
    """A split as token ids.

    Args:
        data: The usable examples.
        parts: Token ids of these examples, by part.
        token_ids: All token ids in the checked training examples; see `encode_split`.
        notes: Messages for the user about skipped rows and about lost characters of inputs.
        bad: The skipped rows.
    """

    data: SplitData
    parts: dict[str, Sequence[Encoded]]
    token_ids: set[int]
    notes: list[str]
    bad: BadRows


def encode_split(
    data: SplitData,
    prefix: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    *,
    parts: Sequence[str] = PARTS,
    too_long: TooLong = lambda encoded: None,
    skip_bad_rows: bool = False,
    used_in_training: Callable[[], Iterable[int]] | None = None,
) -> EncodedSplit:
    """Encode parts of a split, and find the examples that cannot be used.

    Args:
        too_long: Function that returns why an example is too long for the model, or None.
        skip_bad_rows: Leave out unusable examples, instead of raising an error.
        used_in_training: Function that returns the positions of the examples that training will use. If the training
            part is too large for memory and `skip_bad_rows` is False, only these examples are checked. None: all
            examples are checked.

    Raises:
        UserError: An example cannot be used and `skip_bad_rows` is False, or a part has no usable example.
    """
    checked: dict[str, EncodedPart] = {}
    for part in parts:
        used = used_in_training if part == "train" and not skip_bad_rows else None
        checked[part] = encode_part(getattr(data, part), prefix, tokenizer, layout, too_long, used)
    bad, calls = _unusable_rows(data, checked)
    if bad and not skip_bad_rows:
        rows = sum(len(getattr(data, part)) for part in parts)
        advice = "; --add-tokens adds characters to the tokenizer" if bad.has(LOST) or bad.has(CHANGED) else ""
        raise UserError(bad.refusal(rows, f"the data (tokenizer: {tokenizer.name_or_path})") + advice)
    for part in parts:
        if not len(checked[part].examples):
            why = "; ".join(kind.summary() for kind in (bad, calls) if kind)
            raise UserError(f"no {part} row can be used: {why}; correct the rows, or give others")
    usable: Mapping[str, Any] = {part: checked[part].examples for part in parts}
    encoded = {part: checked[part].encoded for part in parts}
    notes = [*([bad.note()] if bad else []), *_text_notes(checked, calls)]
    notes += _template_notes(checked[parts[0]].examples, tokenizer)
    token_ids = checked["train"].token_ids if "train" in checked else set()
    return EncodedSplit(replace(data, **usable), encoded, token_ids, notes, bad)


def _unusable_rows(data: SplitData, parts: Mapping[str, EncodedPart]) -> tuple[BadRows, BadRows]:
    """Return the rows that cannot be used, and the rows whose answer is context because it calls tools.

    A row that is in several parts is counted once.
    """
    bad, calls, counted = BadRows(), BadRows(), set[object]()
    for part, encoded in parts.items():
        for position, problem in encoded.bad:
            if (row := _row_of(data, part, position)) in counted:
                continue
            counted.add(row)
            kind = calls if isinstance(problem, UntrainedCall) else bad
            kind.add(data.row_name(part, getattr(data, part)[position].index) if kind.is_new(problem) else "", problem)
    return bad, calls


def _text_notes(parts: Mapping[str, EncodedPart], calls: BadRows) -> list[str]:
    """Return notes about lost characters, special tokens, tool calls, reasoning texts and tags in the texts."""
    notes = [note for name, part in parts.items() for note in _lost_notes(name, part)]
    total = sum(len(part.examples) for part in parts.values())
    quoted = (token for part in parts.values() for token in part.quoted)
    notes += quoted_note(sum(part.quoting for part in parts.values()), total, quoted)
    if calls:
        notes.append(f"{count(calls.count, 'answer')} that call tools are context and not targets: {calls.summary()}")
    thoughts = sum((part.thoughts for part in parts.values()), Counter[str]())
    notes += [f"warning: {note}" for note in thoughts_notes(thoughts)]
    notes += tag_notes(sum((part.tags for part in parts.values()), Counter()), total)
    return notes


def _row_of(data: SplitData, part: str, position: int) -> object:
    """Return a key that identifies a row. In the last training of `--folds`, one row can be in several parts."""
    rows = getattr(data, part)
    return rows.number(position) if isinstance(rows, StoredRows) else (part, position)


def encode_part(
    examples: Sequence[Example],
    prefix: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    too_long: TooLong = lambda encoded: None,
    used: Callable[[], Iterable[int]] | None = None,
) -> EncodedPart:
    """Encode one part of a split. Unusable examples are left out and listed in `bad`.

    Args:
        too_long: Function that returns why an example is too long for the model, or None.
        used: Function that returns the positions of the examples to check if the part is too large for memory. None:
            all examples are checked.
    """
    keep = len(examples) <= KEPT or isinstance(examples, tuple | list)
    positions = range(len(examples)) if keep or used is None else used()
    part, given = EncodedPart(examples, [], set()), examples
    examples = text_answers(examples, tokenizer, layout)
    kept: list[Encoded] = []
    for chunk in _chunks(positions):
        read = [given[at] for at in chunk]
        rows = [text_answer_or_same(row, tokenizer, layout) for row in read]
        part.thoughts.update(filter(None, map(ignored_thought, read, rows)))
        for at, encoded in zip(chunk, encode_checked(rows, prefix, tokenizer, layout), strict=True):
            problem = encoded if isinstance(encoded, BadRow) else too_long(encoded)
            if problem:
                part.bad.append((at, problem))
            elif isinstance(encoded, Encoded):
                part.token_ids.update(encoded.input_ids, encoded.target_ids)
                kept += [encoded] if keep else []
        if rows[0].chat == "template":
            quoted = quoted_special_tokens([row.input for row in rows], tokenizer)
            part.quoting += sum(map(bool, quoted))
            part.quoted.update(*quoted)
            with contextlib.suppress(BadRow):  # a template can refuse this chat and accept others
                prompt = render_chat("question", "", tokenizer, "template")
                part.tags.update(tag_counts(prompt, (row.target for row in rows)))
        if part.inputs_checked < _INPUTS_CHECKED:
            part.changed_inputs.update(_lost_in_inputs(rows, prefix, tokenizer))
            part.inputs_checked += len(rows)
    part.examples = without(examples, [at for at, _ in part.bad])
    part.encoded = kept if keep else LazilyEncoded(part.examples, prefix, tokenizer, layout)
    return part


def _lost_in_inputs(examples: Sequence[Example], prefix: str, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    """Yield the lost characters of each input. Lost blanks other than line breaks and tabs are ignored."""
    if examples[0].chat:
        return
    texts = [input_text(example, prefix, tokenizer) for example in examples]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    for text, back in zip(texts, decode(rows, tokenizer), strict=True):
        if back != text:
            yield from {sign for sign in text if sign not in back and (sign in "\n\t\r" or not sign.isspace())}


def _template_notes(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    chat = examples[0].chat
    if not chat:
        return []
    first = [examples[at] for at in range(min(len(examples), _CHUNK))]
    notes = [tools_note((example.input for example in first), tokenizer, chat)]
    if chat == "template":
        notes.append(heading_note((example.target for example in first), tokenizer))
    return [note for note in notes if note]


def _lost_notes(part: str, found: EncodedPart) -> Iterable[str]:
    if found.changed_inputs:
        shown = ", ".join(f"{sign!r} in {count:,}" for sign, count in found.changed_inputs.most_common(8))
        yield (
            f"warning: the tokenizer loses characters of {part} inputs ({shown} of {found.inputs_checked:,} inputs); "
            "inputs that differ only in these characters become equal"
        )


def _chunks(positions: Iterable[int]) -> Iterable[list[int]]:
    rest = iter(positions)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        yield chunk
