"""Read the rows of JSON files one at a time.

A file has one object per line, or objects over several lines, or is one list of objects, or is one object with all rows
(see `json_shapes`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from petransfer.data.bad_rows import BadRow
from petransfer.data.rows.json_shapes import rows_in
from petransfer.data.rows.records import Record
from petransfer.data.rows.source import Source
from petransfer.data.rows.text_lines import open_text, problem_of, read_lines
from petransfer.errors import UserError, reason_of

_CHUNK_CHARACTERS = 1 << 20
# An error that is closer to the end of a chunk can come from a token that is cut there, such as `-Infin`.
_LONGEST_TOKEN = 16
_BLANKS = re.compile(r"\s*")
_LIST = re.compile(r"\s*\[\s*([{\]]|$)")
# The end of a line after which an object can continue on the next line.
_TOKEN_END = re.compile(r"[{\[,:]\s*$")
_NOT_AN_OBJECT = 'not a JSON object; write one a line, as {"input": ..., "target": ...}'

_PYTHON = "the text of a Python dictionary, not JSON; write each row with json.dumps"


def _without_comma(line: str) -> str:
    """Return a line without the comma after its object, as in a list of objects whose brackets are missing."""
    return line.rstrip().removesuffix(",") if line.rstrip().endswith("},") else line


def read_json(source: Source) -> Iterator[Record]:
    """Yield the objects of a JSON file in order. Blank lines are skipped."""
    with open_text(source) as file:
        is_list = bool(_LIST.match(file.read(1000)))
    if is_list:
        with open_text(source) as file:
            for number, value in enumerate(_items(file, source.name), start=1):
                yield _record(number, value)
        return
    rows = _of_objects(source)
    if rows is not None:
        yield from (_record(number, value) for number, value in enumerate(rows, start=1))
        return
    for line in read_lines(source):
        if line.problem:
            yield Record(line.number, {}, line.problem)
        elif line.text.strip():
            try:
                value = _DECODER.decode(_without_comma(line.text))
            except (ValueError, RecursionError) as error:
                if line.text.lstrip().startswith("{'"):
                    yield Record(line.number, {}, BadRow(_PYTHON))
                    continue
                yield Record(line.number, {}, BadRow("not valid JSON", _fault(error)))
            else:
                yield _record(line.number, value)


def _of_objects(source: Source) -> Iterator[Any] | None:
    """Return the rows of a file that is one object or has objects over several lines. None for another form."""
    lines = (line for line in read_lines(source) if line.text.strip())
    first = next(lines, None)
    if first is None or first.problem or not first.text.lstrip().startswith("{"):
        return None
    try:
        value = _DECODER.decode(_without_comma(first.text))
    except (ValueError, RecursionError):
        if _TOKEN_END.search(first.text):  # the line may be the beginning of an object
            return _over_lines(source)
        return None
    rows = None if next(lines, None) is not None else rows_in(value, source.name)
    return None if rows is None else iter(rows)


def _over_lines(source: Source) -> Iterator[Any] | None:
    """Return the rows of a file with objects over several lines. None if the file does not begin with an object."""
    with open_text(source) as file:
        objects = _objects(file, source.name)
        first, second = next(objects, None), None
        if first is not None:
            second = next(objects, None)
    if first is None:
        return None
    rows = rows_in(first, source.name) if second is None and isinstance(first, dict) else None
    return iter(rows) if rows is not None else _all_objects(source)


def _all_objects(source: Source) -> Iterator[Any]:
    with open_text(source) as file:
        yield from _objects(file, source.name)


def _objects(file: IO[str], name: str) -> Iterator[Any]:
    """Yield the values of a file one after another. Nothing is yielded if the first one is not valid.

    A value whose bytes are not UTF-8 is yielded as a BadRow.
    """
    text, at, count = file.read(_CHUNK_CHARACTERS), 0, 0
    while True:
        at = _after_blanks(text, at)
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            more = _more(file, text, at, error)
            if not more and (at == len(text) or not count):
                return
            if not more:
                reason = _fault(error, at, " of the object")
                raise UserError(f"{name}: object {count + 1} is not valid JSON ({reason})") from None
            text, at = text[at:] + more, 0
            continue
        count += 1
        yield problem_of(text[at:end]) or value
        at = end


def _record(number: int, value: Any) -> Record:
    if isinstance(value, dict):
        return Record(number, value)
    return Record(number, {}, value if isinstance(value, BadRow) else BadRow(_NOT_AN_OBJECT))


def _items(file: IO[str], name: str) -> Iterator[Any]:
    """Yield the items of a JSON list, one in memory at a time. An item that is not UTF-8 is yielded as a BadRow."""
    text, at, count = file.read(_CHUNK_CHARACTERS), 0, 0
    at = _after_blanks(text, at) + 1  # after the bracket
    while True:
        at = _after_blanks(text, at)
        if text.startswith("]", at):
            _refuse_more(text[at + 1 :], file, name)
            return
        try:
            value, end = _DECODER.raw_decode(text, at)
            end = _after_blanks(text, end)
            if end == len(text):  # a number can continue in the next chunk
                raise json.JSONDecodeError("the list is not closed", text, end)
        except (ValueError, RecursionError) as error:
            more = _more(file, text, at, error)
            if not more:
                reason = _fault(error, at, " of the item")
                raise UserError(f"{name}: item {count + 1} of the list is not valid JSON ({reason})") from None
            text, at = text[at:] + more, 0
            continue
        count += 1
        yield problem_of(text[at:end]) or value
        if text[end] not in ",]":
            raise UserError(f"{name}: a comma is missing after item {count} of the list")
        at = end + (text[end] == ",")


def _more(file: IO[str], text: str, at: int, error: Exception) -> str:
    """Return the next characters of a file if the value at `at` may be invalid only because it is cut. Otherwise empty.

    The value is decoded again after each chunk. Each chunk is as long as the value's text so far, to need few chunks.
    """
    if not isinstance(error, json.JSONDecodeError):  # a key occurs twice, or the value is nested too deeply
        return ""
    is_cut = error.msg.startswith("Unterminated string") or error.pos > len(text) - _LONGEST_TOKEN
    return file.read(max(_CHUNK_CHARACTERS, len(text) - at)) if is_cut else ""


def _fault(error: Exception, at: int = 0, within: str = "") -> str:
    """Return why a value is not valid JSON.

    Args:
        at: Position of the value in the decoded text.
        within: End of the message, such as ` of the object`.
    """
    if not isinstance(error, json.JSONDecodeError):
        return reason_of(error, 80)
    return f"{error.msg.removesuffix(' at')} at character {error.pos - at + 1}{within}"


def _after_blanks(text: str, at: int) -> int:
    """Return the position of the first character from `at` on that is no blank."""
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _refuse_more(text: str, file: IO[str], name: str) -> None:
    """Raise UserError if a file continues after its list, because the rest would not be read."""
    while not text.strip():
        text = file.read(_CHUNK_CHARACTERS)
        if not text:
            return
    raise UserError(
        f"{name} continues after the end of its JSON list ({text.strip()[:20]!r}); write one list with all "
        "rows, or one object a line"
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key '{twice}' occurs twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
