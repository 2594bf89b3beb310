"""Read input lines from a file or standard input, and print generated texts."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import os
import queue
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from petransfer.cli.input_files import refuse_binary
from petransfer.data.rows.text_lines import encoding_of
from petransfer.errors import UserError

# Seconds without any input before the message that petransfer waits for inputs.
PATIENCE = 5.0
_Item = TypeVar("_Item")


def one_line(text: str) -> str:
    """Return a text on one line: line breaks are written as `\\n` and `\\r`."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


# The largest length of a line in bytes: far more than any model reads. The limit is for files such as /dev/zero, which
# are one endless line.
LONGEST_LINE = 16_000_000


def input_lines(file: Path | None) -> Iterator[str]:
    """Yield the lines of a file or of standard input, without line breaks. UTF-8, UTF-16 and UTF-32 are detected.

    Raises:
        UserError: The file cannot be read, standard input is closed, or a line is binary, in another encoding or longer
            than `LONGEST_LINE`.
    """
    if file is None:
        if sys.stdin is None:
            raise UserError("standard input is closed; give the texts as arguments, or name a file with --file")
        if sys.stdin.isatty():
            print("Reading inputs from standard input, one per line. Ctrl-D ends.", file=sys.stderr)
        yield from _decoded(_standard_input(), "standard input")
        return
    try:
        with file.open("rb") as opened:
            yield from _decoded(opened, str(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); name a file with one input per line") from None


def is_pipe(file: Path | None) -> bool:
    """Return whether a file of inputs, or standard input, is a pipe, whose lines can arrive one at a time."""
    if file is not None:
        return not file.is_file()
    try:
        return not sys.stdin.isatty() and not stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):  # standard input is closed, or another object has replaced it
        return False


def arriving_batches(items: Iterable[_Item], most: int) -> Iterator[list[_Item]]:
    """Read items in a thread, and yield the items that have arrived, in batches of at most `most` items.

    The thread starts at once. A batch does not wait for more items, so that a program that writes one line gets its
    answer before it writes the next line.
    """
    read: queue.Queue[_Item | BaseException | None] = queue.Queue(2 * most)  # None: the end

    def fill() -> None:
        try:
            for item in items:
                read.put(item)
            read.put(None)
        except BaseException as error:  # raised again in the thread that uses the items
            read.put(error)

    threading.Thread(target=fill, daemon=True).start()
    return _batches_in(read, most)


def _batches_in(read: queue.Queue[_Item | BaseException | None], most: int) -> Iterator[list[_Item]]:
    patience: float | None = PATIENCE
    while True:
        batch: list[_Item] = []
        while len(batch) < most and not (batch and read.empty()):
            try:
                item = read.get(timeout=patience)
            except queue.Empty:
                print("Waiting for inputs, one per line.", file=sys.stderr, flush=True)
                patience = None
                continue
            if item is None or isinstance(item, BaseException):
                yield from [batch] if batch else []
                if item is not None:
                    raise item
                return
            batch.append(item)
        patience = None
        yield batch


def _standard_input() -> BinaryIO:
    """Return a new file object for standard input.

    A thread that waits for `sys.stdin.buffer` would hold its lock, so that Python could not exit.
    """
    try:
        own = open(sys.stdin.fileno(), "rb", closefd=False)  # noqa: SIM115 - it stays open until the process ends
    except io.UnsupportedOperation:
        return sys.stdin.buffer
    # the program that started this one may have made the pipe non-blocking: a pause would then look like the end
    with contextlib.suppress(OSError, AttributeError):
        os.set_blocking(own.fileno(), True)
    return own


def _decoded(lines: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of a binary file as text."""
    parts = iter(lambda: lines.readline(LONGEST_LINE + 1), b"")  # a part ends with the byte 10 (LF)
    first = next(parts, b"")
    _refuse_long(first, name, 1)
    refuse_binary(first, name)
    encoding, mark = encoding_of(first)
    # In UTF-16 and UTF-32, the byte 10 can belong to another character. In little-endian text, a line feed continues
    # with zero bytes.
    following = {"utf-16-le": 1, "utf-32-le": 3}.get(encoding, 0)
    decode = codecs.getincrementaldecoder(encoding)().decode
    number, begun = 1, ""
    for part in itertools.chain([first[mark:]] if first else [], parts, [b""]):
        try:
            begun += decode(part + (lines.read(following) if part.endswith(b"\n") else b""), final=not part)
        except UnicodeDecodeError as error:
            # in UTF-8, each part is one line, so the position in the part is the position in the line
            where = f"line {number}, byte {error.start + (mark if number == 1 else 0) + 1}"
            found = encoding.upper().removesuffix("-LE").removesuffix("-BE")
            raise UserError(f"{name} is not {found} at {where}; save it as UTF-8") from None
        _refuse_long(part, name, number)
        _refuse_long(begun, name, number)
        if begun.endswith("\n") or (begun and not part):
            yield begun.removesuffix("\n").removesuffix("\r")
            number, begun = number + 1, ""


def _refuse_long(line: bytes | str, name: str, number: int) -> None:
    if len(line) > LONGEST_LINE:
        raise UserError(f"line {number} of {name} has more than {LONGEST_LINE:,} bytes; give one input per line")
