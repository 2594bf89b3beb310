"""Read the lines of a text file: plain or compressed, in any encoding, with any line ends."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from petransfer.data.bad_rows import NOT_UTF8, BadRow
from petransfer.data.rows.source import Source, zip_member
from petransfer.errors import UserError, reason_of

_SAMPLE_BYTES = 1 << 16
_UNREADABLE = (OSError, NotImplementedError, lzma.LZMAError, EOFError, zlib.error, zipfile.BadZipFile)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # must come before UTF-16: this mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of a text file.

    Args:
        number: Number of the line, counted from 1.
        text: The line without its line end. Bytes that are not UTF-8 become replacement characters.
        problem: Why the line is not valid text. None for a good line.
        end: The line end in the file: LF, CRLF or CR. Empty for a last line without a line end.
    """

    number: int
    text: str
    problem: BadRow | None = None
    end: str = "\n"


def read_lines(source: Source) -> Iterator[TextLine]:
    """Yield the lines of the source's file, including blank lines."""
    with open_text(source) as file:
        # a file that was joined from several has their byte order marks at the beginning of lines
        lines = (line if line.isascii() else line.removeprefix("\ufeff") for line in file)
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n") if line[-2:] == "\r\n" else line[:-1] if line[-1:] in "\r\n" else line
            end = line[len(text) :]
            yield TextLine(number, text, end=end) if text.isascii() else _checked(number, text, end)


def first_bytes(source: Source) -> bytes:
    """Return the first bytes of the source's file, unpacked. Empty if the file cannot be read."""
    assert source.path is not None
    try:
        with _open_bytes(source.path, source.name) as file:
            return file.read(_SAMPLE_BYTES)
    except _UNREADABLE:  # `open_text` reports this error
        return b""


def decoded(sample: bytes) -> str:
    """Return the first bytes of a file as text, in the encoding that is detected."""
    encoding, mark = encoding_of(sample)
    return sample[mark:].decode(encoding, "replace")


def is_utf8(sample: bytes) -> bool:
    """Return whether the first bytes of a file are UTF-8 with other characters than ASCII."""
    if sample.isascii():
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # the sample can end inside of a character
    except UnicodeDecodeError:
        return False
    return True


@contextlib.contextmanager
def open_text(source: Source) -> Iterator[IO[str]]:
    """Open the source's file as text, without its byte order mark."""
    assert source.path is not None
    try:
        with _open_bytes(source.path, source.name) as file:
            sample = file.read(_SAMPLE_BYTES)
        encoding, mark = encoding_of(sample, source.encoding)
        beginning = sample.decode(encoding, "replace")
        end = "\r" if "\r" in beginning and "\n" not in beginning else "\n"
        with _open_bytes(source.path, source.name) as file:
            file.read(mark)
            # invalid UTF-8 becomes lone surrogates, by which `read_lines` finds the line
            errors = "surrogateescape" if encoding == "utf-8" else "strict"
            with io.TextIOWrapper(file, encoding, errors, newline=end) as text:
                yield text
    except UnicodeError as error:  # some encodings raise no UnicodeDecodeError
        encoding, reason = source.encoding or getattr(error, "encoding", ""), getattr(error, "reason", error)
        if source.encoding and is_utf8(sample):
            raise UserError(
                f"{source.name} is UTF-8 and not {encoding}; leave the option encoding out, and if another file needs "
                "it, save that file as UTF-8"
            ) from None
        raise UserError(
            f"{source.name} is not {encoding} ({reason}); save it as UTF-8; for `petransfer train`, you can also name "
            "its encoding with --set task.options.encoding=NAME"
        ) from None
    except _UNREADABLE as error:
        advice = "allow reading it" if isinstance(error, PermissionError) else "write or download it again"
        raise UserError(f"{source.path} cannot be read ({reason_of(error)}); {advice}") from None


@contextlib.contextmanager
def _open_bytes(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes. A compressed file is unpacked."""
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive, archive.open(zip_member(archive, name)) as member:
            yield member
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow  # Python 3.11 has no module for zstd

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            yield io.BufferedReader(stream)
    elif head.startswith(b"\x1f\x8b"):
        with gzip.open(path) as packed:
            yield cast(IO[bytes], packed)
    elif head.startswith(b"BZh"):
        with bz2.open(path) as unpacked:
            yield cast(IO[bytes], unpacked)
    elif head.startswith(b"\xfd7zXZ\x00"):
        with lzma.open(path) as stretched:
            yield cast(IO[bytes], stretched)
    else:
        with path.open("rb") as plain:
            yield plain


def encoding_of(sample: bytes, named: str = "") -> tuple[str, int]:
    """Return the encoding of a file, and the length of its byte order mark in bytes.

    Args:
        sample: The first bytes of the file.
        named: The encoding that the user named. Empty: UTF-8, UTF-16 and UTF-32 are detected.

    Raises:
        UserError: Python knows no encoding of this name.
    """
    mark, marked = next((pair for pair in _BYTE_ORDER_MARKS if sample.startswith(pair[0])), (b"", ""))
    if named:
        try:
            known = codecs.lookup(named).name
            b"a".decode(known, "replace")  # some codecs are not for text, and some do not replace wrong bytes
        except (LookupError, ValueError):
            raise UserError(f"encoding: Python knows no '{named}'; give one such as utf-8, latin-1 or cp1252") from None
        return (marked or f"{known}-le" if known in ("utf-16", "utf-32") else known), len(mark)
    if marked:
        return marked, len(mark)
    # UTF-16 without a byte order mark has many zero bytes
    even, odd = sample[0:1000:2].count(0), sample[1:1000:2].count(0)
    if max(even, odd) * 4 > min(len(sample), 1000):
        return ("utf-16-le" if odd > even else "utf-16-be"), 0
    return "utf-8", 0


def _checked(number: int, text: str, end: str) -> TextLine:
    problem = problem_of(text)
    if problem:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return TextLine(number, text, problem, end)


def problem_of(text: str) -> BadRow | None:
    """Return why a text from `open_text` is not valid: some of its bytes are not UTF-8. None for a valid text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        try:
            text.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            advice = (
                "save the file as UTF-8, or give `petransfer train` the name of its encoding, as in --set "
                "task.options.encoding=cp1252 for western Europe (others: cp1251, shift_jis, gb18030, big5, cp949)"
            )
            return BadRow(NOT_UTF8, f"at byte {error.start}; {advice}")
    return None
