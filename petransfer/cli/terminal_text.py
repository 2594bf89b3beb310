"""Print sentences and commands so that a terminal does not break their lines inside words."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

from petransfer.visible_text import visible

# The beginning of a line with a command that can be copied: two spaces and the name of a program.
_COMMAND = ("  petransfer ", "  curl ")
# White space and the text after it that is never broken: a command between backquotes, an option with its value (the
# next word), a percentage, a p value, or one word.
_PARTS = re.compile(
    r"""(\s*)(`[^`]+`\S*|["'(\[]*--\w\S*(?:(?<![,;:.)])\ (?!-)(?:'[^']*'|"[^"]*"|\S)+)?"""
    r"""|\(?[\d.,]+\ %\S*|\(?p\ [=<]\ \S+|\S+)"""
)


def print_text(*lines: str, file: TextIO | None = None) -> None:
    """Print lines of text. In a terminal, a line that is too long is broken at white space.

    Control characters are printed as escapes such as \\x1b, because they could change what a terminal shows.

    Args:
        lines: The lines. A line that begins with two spaces and `petransfer` or `curl` is a command: it is continued
            on the next line with a backslash, so that it can be copied.
        file: The output; stdout by default.
    """
    out = file or sys.stdout
    width = width_of(out)
    for line in lines:
        print(fitted(visible(line), width), file=out, flush=True)


def for_output(text: str, out: TextIO) -> str:
    """Return a text for an output. For a terminal, its control characters are replaced by escapes such as \\x1b."""
    return visible(text) if out.isatty() else text


def width_of(stream: TextIO) -> int | None:
    """Return the width of the terminal to which a stream writes, in characters; None if it is no terminal."""
    if not stream.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def fitted(text: str, width: int | None) -> str:
    """Return a text whose lines are broken at white space into lines of at most `width` characters.

    The second line and later ones are indented by two more spaces than the first. A word that is longer than a line
    stays whole, and so do a command between backquotes and an option with its value.

    Args:
        width: Largest number of characters in a line. None: the text is not changed.
    """
    if width is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _fitted_line(line, width))


def _fitted_line(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    if line.startswith(_COMMAND):
        return _fitted_command(line, width)
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    lines = [indent[2:]]
    for space, part in _PARTS.findall(line):
        if not lines[-1].strip():
            lines[-1] += part
        elif len(lines[-1]) + len(space) + len(part) <= width:
            lines[-1] += space + part
        elif part.startswith("`") and len(indent) + len(part) > width:
            lines += _fitted_command(indent + part, width)
        else:
            lines.append(indent + part)
    return lines


def _fitted_command(line: str, width: int) -> list[str]:
    """Break a command between its arguments. Every line but the last ends in a backslash."""
    indent = " " * (len(line) - len(line.lstrip()))
    lines = [""]
    for word in _arguments(line):
        joined = f"{lines[-1]} {word}" if lines[-1] else f"{indent}{word}"
        if len(joined) + 2 > width and lines[-1]:
            lines.append(f"{indent}  {word}")
        else:
            lines[-1] = joined
    return [f"{part} \\" for part in lines[:-1]] + lines[-1:]


def _arguments(line: str) -> list[str]:
    """Return the arguments of a command as they are written, with their quotation marks. An option keeps its value."""
    found: list[str] = []
    for word in re.findall(r"""(?:'[^']*'|"[^"]*"|\S)+""", line):
        if found and found[-1].startswith("-") and " " not in found[-1] and not word.startswith("-"):
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found
