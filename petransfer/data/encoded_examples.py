"""The parts of a split as token ids: all examples are checked in one pass, before a model is loaded."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from petransfer.data.bad_rows import BadRow, BadRows
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
from petransfer.data.task import PARTS, Example, SplitData
from petransfer.errors import UserError

# So many examples are kept as token ids; more are encoded again each time they are used.
KEPT = 20_000
_CHUNK = 1000
# Of so many inputs of a part it is checked whether the tokenizer keeps all their characters.
_INPUTS_CHECKED = 2000

TooLong = Callable[[Encoded], BadRow | None]
"""Why an example is too long for the model, or None."""


class LazilyEncoded(Sequence[Encoded]):
    """The token ids of examples that stay on the disk, encoded when they are asked for."""

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
        """Encode several examples at once, which a tokenizer does faster."""
        return encode_examples([self.examples[at] for at in positions], self._prefix, self._tokenizer, self._layout)


def take(encoded: Sequence[Encoded], positions: Sequence[int]) -> list[Encoded]:
    """Return the examples at these positions."""
    if isinstance(encoded, LazilyEncoded):
        return encoded.take(positions)
    return [encoded[at] for at in positions]


@dataclass
class EncodedPart:
    """One part as token ids.

    Args:
        examples: The examples that can be used.
        encoded: Their token ids, in memory or encoded when they are asked for.
        token_ids: The token ids that occur in the examples that were looked at.
        bad: Position and reason of each example that cannot be used.
        changed_inputs: How many inputs lose a character, by character; of the first inputs.
        inputs_checked: How many inputs were looked at for that.
    """

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    token_ids: set[int]
    bad: list[tuple[int, BadRow]] = field(default_factory=list)
    changed_inputs: Counter[str] = field(default_factory=Counter)
    inputs_checked: int = 0


@dataclass(frozen=True)
class EncodedSplit:
    """A split as token ids.

    Args:
        data: The examples that can be used.
        parts: Their token ids by part.
        token_ids: The token ids that occur in the training examples.
        notes: What the user should know: rows that were left out, inputs that the tokenizer changes.
    """

    data: SplitData
    parts: dict[str, Sequence[Encoded]]
    token_ids: set[int]
    notes: list[str]


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
    """Encode parts of a split and find every example that cannot be used.

    Args:
        prefix: Stands before every input.
        parts: The parts that are used.
        too_long: Says why an example is too long for the model.
        skip_bad_rows: Whether to leave such examples out.
        used_in_training: The positions of the training examples that training uses. Where there are too many examples
            to keep, only these are checked, unless bad rows are skipped. None: all.

    Raises:
        UserError: Examples cannot be used and must not be left out; the error counts them by reason. Or a part has no
            other examples.
    """
    found: dict[str, EncodedPart] = {}
    bad = BadRows()
    for part in parts:
        used = used_in_training if part == "train" and not skip_bad_rows else None
        found[part] = encode_part(getattr(data, part), prefix, tokenizer, layout, too_long, used)
        for position, problem in found[part].bad:
            bad.add(data.row_name(part, getattr(data, part)[position].index) if bad.is_new(problem) else "", problem)
    if bad and not skip_bad_rows:
        rows = sum(len(getattr(data, part)) for part in parts)
        advice = "; --add-tokens adds characters to the tokenizer" if bad.has(LOST) or bad.has(CHANGED) else ""
        raise UserError(bad.refusal(rows, f"the data, with the tokenizer {tokenizer.name_or_path}") + advice)
    for part in parts:
        if not len(found[part].examples):
            raise UserError(f"no {part} row can be used: {bad.summary()}; correct the rows, or give others")
    kept: Mapping[str, Any] = {part: found[part].examples for part in parts}
    encoded = {part: found[part].encoded for part in parts}
    notes = ([bad.note()] if bad else []) + [note for part in parts for note in _changed(part, found[part])]
    token_ids = found["train"].token_ids if "train" in found else set()
    return EncodedSplit(replace(data, **kept), encoded, token_ids, notes)


def encode_part(
    examples: Sequence[Example],
    prefix: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    too_long: TooLong = lambda encoded: None,
    used: Callable[[], Iterable[int]] | None = None,
) -> EncodedPart:
    """Encode one part; examples that cannot be used are listed and left out.

    Args:
        used: The positions that are looked at where the examples are too many to be kept; None: all.
    """
    keep = len(examples) <= KEPT or isinstance(examples, tuple | list)
    positions = range(len(examples)) if keep or used is None else used()
    part = EncodedPart(examples, [], set())
    kept: list[Encoded] = []
    for chunk in _chunks(positions):
        rows = [examples[at] for at in chunk]
        for at, encoded in zip(chunk, encode_checked(rows, prefix, tokenizer, layout), strict=True):
            problem = encoded if isinstance(encoded, BadRow) else too_long(encoded)
            if problem:
                part.bad.append((at, problem))
            elif isinstance(encoded, Encoded):
                part.token_ids.update(encoded.input_ids, encoded.target_ids)
                kept += [encoded] if keep else []
        if part.inputs_checked < _INPUTS_CHECKED:
            part.changed_inputs.update(_lost_in_inputs(rows, prefix, tokenizer))
            part.inputs_checked += len(rows)
    part.examples = _without(examples, [at for at, _ in part.bad])
    part.encoded = kept if keep else LazilyEncoded(part.examples, prefix, tokenizer, layout)
    return part


def _without(examples: Sequence[Example], positions: Sequence[int]) -> Sequence[Example]:
    if not positions:
        return examples
    if hasattr(examples, "without"):  # they stay on the disk
        rows: Sequence[Example] = examples.without(positions)
        return rows
    left_out = set(positions)
    return tuple(example for at, example in enumerate(examples) if at not in left_out)


def _lost_in_inputs(examples: Sequence[Example], prefix: str, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    """For each input, the characters that do not come back from its token ids; line breaks and tabs count."""
    if examples[0].chat:
        return
    texts = [input_text(example, prefix, tokenizer) for example in examples]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    for text, back in zip(texts, decode(rows, tokenizer), strict=True):
        if back != text:
            yield from {sign for sign in text if sign not in back and (sign in "\n\t\r" or not sign.isspace())}


def _changed(part: str, found: EncodedPart) -> Iterable[str]:
    if found.changed_inputs:
        shown = ", ".join(f"{sign!r} in {count:,}" for sign, count in found.changed_inputs.most_common(8))
        yield (
            f"warning: the tokenizer loses characters of {part} inputs ({shown} of {found.inputs_checked:,} inputs); "
            "inputs that differ in these alone become equal"
        )


def _chunks(positions: Iterable[int]) -> Iterable[list[int]]:
    rest = iter(positions)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        yield chunk
