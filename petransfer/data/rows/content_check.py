"""Refuse files whose first bytes do not match the format in the file name."""

from __future__ import annotations

import codecs
import json
import re

from petransfer.data.rows.source import Source
from petransfer.data.rows.text_lines import decoded, first_bytes
from petransfer.errors import UserError

_TEXT_FORMATS = ("tsv", "csv", "jsonl")
# Kinds of files that are often named like a table by mistake, by their first bytes.
_KINDS = (
    (b"SQLite format 3\0", "an SQLite database; export the table as CSV"),
    (b"PAR1", "a parquet file; rename it so that the name ends in .parquet"),
    (b"ARROW1\0\0", "an arrow file; rename it so that the name ends in .arrow"),
    (b"%PDF-", "a PDF document; write a table"),
    (b"\x89PNG\r\n", "an image; write a table"),
    (b"\xff\xd8\xff", "an image; write a table"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file; save the sheet as CSV (UTF-8)"),
    (b"\x80\x04\x95", "a Python pickle, which can run code; save a table"),
    (b"\x93NUMPY", "an array of NumPy; write a table"),
    (b"\x89HDF\r\n", "an HDF5 file; write a table"),
)
_WEB_PAGE = re.compile(rb"\s*(<!--.{0,500}?-->\s*)?<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_JSON_LIST = re.compile(rb"\[\s*\{")
# Control characters that text files do not contain.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a]")


def refuse_other_content(source: Source) -> None:
    """Raise UserError if a text file is another kind of file, by its first bytes."""
    if source.format not in _TEXT_FORMATS:
        return
    head = first_bytes(source)
    kind = next((kind for sign, kind in _KINDS if head.startswith(sign)), "") or _text_kind(source, head)
    if not kind and not source.encoding and _is_binary(head):
        kind = "a binary file, or text in an unknown encoding; save its rows as a text file in UTF-8"
    if kind:
        raise UserError(f"{source.name} looks like {kind}")


def _text_kind(source: Source, head: bytes) -> str:
    """Return what a text file is if it is not in the expected format: a web page, JSON or a table. Otherwise empty."""
    text = head.removeprefix(codecs.BOM_UTF8)
    if _WEB_PAGE.match(text):
        return "a web page (HTML), not the file itself; download the file again"
    lines = [line.strip() for line in text.splitlines() if line.strip()][:5]
    first = lines[0] if lines else b""
    if source.format != "jsonl":
        if _is_json_object(first):
            return "JSON with one object a line; rename it so that the name ends in .jsonl"
        if b"\t" not in first and _JSON_LIST.match(text.lstrip()):
            return "a JSON list of objects; rename it so that the name ends in .json"
    elif _TABLE_HEAD.fullmatch(first) and not any(line.startswith((b"{", b"[")) for line in lines):
        ending, sign = (".tsv", "tabs") if b"\t" in first else (".csv", "commas or semicolons")
        return f"a table with columns between {sign}, not JSON; rename it so that the name ends in {ending}"
    return ""


# A line that can be the column names of a table, and cannot be JSON.
_TABLE_HEAD = re.compile(rb"[^\x00-\x08{}\[\],;\t]+([,;\t][^\x00-\x08{}\[\],;\t]+)+")


def _is_json_object(line: bytes) -> bool:
    try:
        return line.startswith(b"{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_binary(head: bytes) -> bool:
    """Return whether more than 2 % of the characters are control characters, with zeros among them."""
    text = decoded(head)
    return "\0" in text and 50 * len(_CONTROL.findall(text)) > len(text)
