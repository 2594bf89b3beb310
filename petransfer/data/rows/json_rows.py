"""Read the rows of JSON files one at a time. A file has one object per line, or is one list of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from petransfer.data.bad_rows import BadRow
from petransfer.data.rows.records import Record
from petransfer.data.rows.source import Source
from petransfer.data.rows.text_lines import open_text, read_lines
from petransfer.errors import UserError, reason_of

_CHUNK_CHARACTERS = 1 << 20
_BLANKS = re.compile(r"\s*")
_LIST = re.compile(r"\s*\[\s*([{\]]|$)")
_NOT_AN_OBJECT = 'not a JSON object; write one a line, as {"input": ..., "target": ...}'


def read_json(source: Source) -> Iterator[Record]:
    """Yield the objects of a JSON file in order. Blank lines are skipped."""
    with open_text(source) as file:
        is_list = bool(_LIST.match(file.read(1000)))
    if is_list:
        with open_text(source) as file:
            for number, value in enumerate(_items(file, source.name), start=1):
                yield _record(number, value)
        return
    for line in read_lines(source):
        if line.problem:
            yield Record(line.number, {}, line.problem)
        elif line.text.strip():
            try:
                value = _DECODER.decode(line.text)
            except (ValueError, RecursionError) as error:
                detail = re.sub(r": line 1 column (\d+) \(char \d+\)", r" at character \1", str(error))
                yield Record(line.number, {}, BadRow("not valid JSON", reason_of(detail, 80)))
            else:
                yield _record(line.number, value)


def _record(number: int, value: Any) -> Record:
    return Record(number, value) if isinstance(value, dict) else Record(number, {}, BadRow(_NOT_AN_OBJECT))


def _items(file: IO[str], name: str) -> Iterator[Any]:
    """Yield the items of a JSON list. Only one chunk of the file is in memory."""
    text, at, count = file.read(_CHUNK_CHARACTERS), 0, 0
    at = _after_blanks(text, at) + 1  # behind the bracket
    while True:
        at = _after_blanks(text, at)
        if text.startswith("]", at):
            _refuse_more(text[at + 1 :], file, name)
            return
        try:
            value, end = _DECODER.raw_decode(text, at)
            end = _after_blanks(text, end)
            if end == len(text):  # a number can continue in the next chunk
                raise ValueError("the list is not closed")
        except (ValueError, RecursionError) as error:
            more = file.read(_CHUNK_CHARACTERS)
            if not more:
                reason = reason_of(error, 80)
                raise UserError(f"{name}: item {count + 1} of the list is not valid JSON ({reason})") from None
            text, at = text[at:] + more, 0
            continue
        count += 1
        yield value
        if text[end] not in ",]":
            raise UserError(f"{name}: a comma is missing after item {count} of the list")
        at = end + (text[end] == ",")


def _after_blanks(text: str, at: int) -> int:
    """Return the position of the first character from `at` on that is no blank."""
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _refuse_more(text: str, file: IO[str], name: str) -> None:
    """Raise UserError if a file continues after its list, because the rest would not be read."""
    while text:
        if text.strip():
            raise UserError(
                f"{name} continues after the end of its JSON list ({text.strip()[:20]!r}); write one list with all "
                "rows, or one object a line"
            )
        text = file.read(_CHUNK_CHARACTERS)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' occurs twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
