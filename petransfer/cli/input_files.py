"""Refuse a file of inputs that is a table, JSON rows or a binary file, and say how to write the inputs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from petransfer.data.rows.text_lines import decoded, encoding_of
from petransfer.data.templates import fields_of
from petransfer.errors import UserError
from petransfer.recipe.run_spec import RunSpec
from petransfer.unreadable_files import refuse_unreadable

_COLUMNS = ("input", "target", "prompt", "completion", "messages", "conversations", "contents")
_TABLES = (".csv", ".tsv", ".tab")
_JSON = (".json", ".jsonl", ".ndjson")
_HEAD_BYTES, _HEAD_OF_ROWS = 1 << 16, 1 << 13
_LONGEST_NAME = 40
# The first bytes of compressed files.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip, as Office files are too",
}
# The first bytes of parquet, arrow and PDF files.
_BINARY = (b"PAR1", b"ARROW1", b"%PDF-")
_ADVICE = "write the inputs to a text file, one input per line"


def refuse_other_files(file: Path, specs: Iterable[RunSpec | None]) -> None:
    """Raise UserError if a file holds a table, JSON rows or binary data instead of one input per line.

    Args:
        file: The file that the user named. A pipe or a device is not read.
        specs: Specifications of the models' runs, which name the columns of the training data.
    """
    try:
        if not file.is_file():
            return
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError:  # `input_lines` reports this error
        return
    refuse_unreadable(file)
    refuse_binary(head, str(file))
    _refuse_rows(file, str(file), decoded(head), list(specs))


def refuse_binary(head: bytes, name: str) -> None:
    """Raise UserError if data are compressed or binary.

    Args:
        head: The first bytes of the data.
        name: Source of the data, for the message.
    """
    form = next((form for start, form in _COMPRESSED.items() if head.startswith(start)), "")
    if form:
        raise UserError(f"{name} is not a text file: it is compressed ({form}); unpack it first, and {_ADVICE}")
    if head.startswith(_BINARY) or (b"\0" in head and not _is_wide_text(head)):
        raise UserError(f"{name} is not a text file; {_ADVICE}")


def without_rows(lines: Iterable[str], specs: Iterable[RunSpec | None]) -> Iterator[str]:
    """Yield the lines of standard input. Raise UserError if the first line is a table header or a JSON row."""
    first = True
    for line in lines:
        if first:
            _refuse_rows(Path("FILE"), "standard input", line, list(specs))
        first = False
        yield line


def _refuse_rows(file: Path, name: str, text: str, specs: list[RunSpec | None]) -> None:
    """Raise UserError if the text is the beginning of a table or of JSON rows. `name` is used in the message."""
    if any(_are_inputs(text, spec) for spec in specs):
        return
    columns = list(dict.fromkeys(column for spec in specs for column in _columns(spec)))
    found = _json_keys(file, text, columns)
    kind = "key" if found else "column"
    found = found or _table_columns(file, text, columns)
    if found:
        names = ", ".join(f"'{name}'" for name in found)
        what = "JSON rows" if kind == "key" else "a table"
        raise UserError(
            f"{name} holds {what} with the {kind}{'s' if len(found) > 1 else ''} {names}, but predict uses "
            f"every line as one input; {_ADVICE} (its name ends in .txt), or score the rows with `petransfer eval "
            f"ADAPTER --data {file}`"
        )


def _are_inputs(text: str, spec: RunSpec | None) -> bool:
    """Return whether the first line is an input for a template with several columns, as a JSON object."""
    fields = fields_of(str(spec.task.options.get("template", ""))) if spec else ()
    if len(fields) < 2:
        return False
    try:
        row = json.loads(next((line for line in text.splitlines() if line.strip()), ""))
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {field.split(".")[0] for field in fields} <= {key.split(".")[0] for key in row}


def _is_wide_text(head: bytes) -> bool:
    """Return whether data with zero bytes are UTF-16 or UTF-32."""
    encoding, mark = encoding_of(head)
    # without a byte order mark, all zero bytes of English UTF-16 are at even positions, or all are at odd positions
    return encoding != "utf-8" and (mark > 0 or 0 in (head[0:1000:2].count(0), head[1:1000:2].count(0)))


def _columns(spec: RunSpec | None) -> list[str]:
    """Return column names by which a table header is recognised: usual names, and names of the training data."""
    if spec is None:
        return list(_COLUMNS)
    named = {**spec.task.options, **spec.task.source}
    given = [
        str(named[key]) for key in ("input", "target", "input_column", "target_column", "messages") if key in named
    ]
    template = str(named.get("template", ""))
    return [*_COLUMNS, *given, *(fields_of(template, "") if template else ())]


def _json_keys(file: Path, text: str, columns: list[str]) -> list[str]:
    """Return the columns that are keys of JSON objects at the beginning of a file. Empty for other files."""
    is_json = file.suffix.lower() in _JSON
    if not (text.lstrip()[:1] == "{" or (text.lstrip()[:1] == "[" and is_json)):
        return []
    found = [name for name in columns if re.search(rf'[{{,\[]\s*"{re.escape(name)}"\s*:', text)]
    if is_json and not found:
        # rows with other keys; a list of messages is one input of a chat
        found = list(dict.fromkeys(re.findall(r'"([^"\\\n]+)"\s*:', text[:_HEAD_OF_ROWS])))[:3]
        return [] if "role" in found else found
    return found if is_json or len(found) > 1 or "messages" in found else []


def _table_columns(file: Path, text: str, columns: list[str]) -> list[str]:
    """Return the columns that are in the first line of a file. Empty for a file that is not a table."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lstrip()[:1] in ("{", "["):
        return []
    is_table = file.suffix.lower() in _TABLES
    for delimiter in "\t,;|":
        try:
            cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
        except csv.Error:
            continue
        found = [name for name in columns if name in cells]
        if len(found) > 1 or (found and is_table):
            return found
    return _other_columns(text) if is_table else []


def _other_columns(text: str) -> list[str]:
    """Return the cells of a table's first line. Empty if the lines have different numbers of cells, or one cell."""
    lines = [line for line in text[:_HEAD_OF_ROWS].splitlines() if line.strip()]
    complete = lines if len(text) <= _HEAD_OF_ROWS else lines[:-1]
    for delimiter in "\t,;|":
        try:
            rows = [[cell.strip() for cell in row] for row in csv.reader(complete, delimiter=delimiter)]
        except csv.Error:
            continue
        names = rows[0] if rows else []
        if (
            len(rows) > 1
            and len(names) > 1
            and {len(row) for row in rows} == {len(names)}
            and max(map(len, names)) < 40
        ):
            return names[:3]
    return []


def is_existing_file(text: str) -> bool:
    """Return whether a text is the name of a file on this machine."""
    return _is(text, Path.is_file)


def is_folder(text: str) -> bool:
    """Return whether a text is the name of a folder on this machine."""
    return _is(text, Path.is_dir)


def _is(text: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(Path(text))
    except (OSError, ValueError):  # such as a text that is longer than a file's name can be
        return False
