"""Read input lines from a file or standard input, and print generated texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from petransfer.errors import UserError

_BOM = b"\xef\xbb\xbf"


def one_line(text: str) -> str:
    """Return a text on one line: line breaks are written as `\\n` and `\\r`."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


# The largest length of a line in bytes: far more than any model reads. The limit is for files such as /dev/zero, which
# are one endless line.
LONGEST_LINE = 16_000_000


def input_lines(file: Path | None) -> Iterator[str]:
    """Yield the lines of a UTF-8 file or of standard input, without line breaks.

    Raises:
        UserError: The file cannot be read, standard input is closed, or a line is not UTF-8 or is longer than
            `LONGEST_LINE`.
    """
    if file is None:
        if sys.stdin is None:
            raise UserError("standard input is closed; give the texts as arguments, or name a file with --file")
        if sys.stdin.isatty():
            print("Reading inputs from standard input, one per line. Ctrl-D ends.", file=sys.stderr)
        yield from _decoded(sys.stdin.buffer, "standard input")
        return
    try:
        with file.open("rb") as opened:
            yield from _decoded(opened, str(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); name a file with one input per line") from None


def _decoded(lines: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise UserError(f"line {number} of {name} has more than {LONGEST_LINE:,} bytes; give one input per line")
        start = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
        try:
            text = line[start:].decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"line {number}, byte {error.start + start + 1}"
            raise UserError(f"{name} is not UTF-8 at {where}; save it as UTF-8") from None
        yield text.removesuffix("\n").removesuffix("\r")
