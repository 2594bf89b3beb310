"""Find characters in a recipe that look right but that YAML reads differently, such as curly quotes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

import yaml

from petransfer.errors import UserError, shortened

# The largest number of YAML events (keys, values and brackets) that are searched. Recipes written by hand have fewer.
MOST_EVENTS = 20_000
# Blank characters that YAML reads as letters, such as the no-break space, the figure space and the zero-width space.
_BLANKS = "\xa0\u2007\u202f\u200b\u2060\ufeff"
_CURLY_QUOTES = "\u2018\u2019\u201a\u201c\u201d\u201e\xab\xbb"
_DASHES = "\u2013\u2014\u2212"
# One of these blank characters at the start or the end of a value, or after the colon of a key.
_ODD_BLANK = re.compile(rf" *[{_BLANKS}]|.*[{_BLANKS}] *$|[\w-]+:[{_BLANKS}]", re.DOTALL)
_CURLY = re.compile(rf"[{_CURLY_QUOTES}](.*)[{_CURLY_QUOTES}]", re.DOTALL)
_DECIMAL_COMMA = re.compile(r"([-+]?\d+),(\d+(?:[eE][-+]?\d+)?)")
_DASH_IN_NUMBER = re.compile(rf"[-+.\d{_DASHES}]*\d[.\d]*(?:[eE][-+{_DASHES}]?\d+)?")


def refuse_typographic_characters(events: Iterable[Any], text: str, deepest: int) -> None:
    """Refuse a recipe with characters such as curly quotes or no-break spaces in an unquoted key or value.

    Args:
        events: The parser's events for `text`.
        deepest: The nesting depth at which the search ends.

    Raises:
        UserError: There is such a character. The message begins with a verb; the caller adds the file's name.
    """
    lines, depth = text.split("\n"), 0
    before: Any = None
    try:
        for event in islice(events, MOST_EVENTS):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > deepest:
                return
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
                mark: Any = event.start_mark
                problem = _problem(event.value) or _number_in_braces(before, event, lines)
                if problem:
                    raise UserError(f"has {problem[0]} in line {mark.line + 1}; {problem[1]}")
            before = event
    except yaml.YAMLError:  # `parse_yaml` reports this error
        return


def advice(lines: list[str], at: int) -> str:
    """Return advice for a line that is not YAML. '' if neither this line nor the line before has such characters.

    Args:
        at: The index of the line in `lines`.
    """
    # YAML reads a line with a no-break space after the colon as a text, and reports the error in the next line
    for number in range(max(at - 1, 0), min(at + 1, len(lines))):
        if any(blank in lines[number] for blank in _BLANKS):
            return f"; line {number + 1} has a no-break space or an invisible character: use normal spaces"
    line = "".join(lines[at : at + 1])
    if re.search(r'"[^"]*\\[^"]*"', line):
        return "; put a path with backslashes in single quotes ('C:\\data\\x.csv'), or write it with slashes"
    if re.search(f"[{_CURLY_QUOTES}]", line):
        return f"; line {at + 1} has curly quotes: write straight quotes"
    return ""


def _problem(value: str) -> tuple[str, str] | None:
    """Check an unquoted key or value. Return its problem and the advice to the user. None if there is no problem."""
    if _ODD_BLANK.match(value):
        return "a no-break space or an invisible character", "use normal spaces"
    curly, comma = _CURLY.fullmatch(value), _DECIMAL_COMMA.fullmatch(value)
    if curly:
        right = shortened(curly[1], 60)
        return f"curly quotes ({shortened(value, 60)})", f'write straight quotes: "{right}"'
    if comma:
        return f"a decimal comma ({value})", f"write {comma[1]}.{comma[2]}, or put it in quotes if it is text"
    if re.search(f"[{_DASHES}]", value) and _DASH_IN_NUMBER.fullmatch(value):
        right = re.sub(f"[{_DASHES}]", "-", value)
        return f"a dash in a number ({value})", f"use the hyphen-minus character (-): {right}"
    return None


def _number_in_braces(before: Any, event: Any, lines: list[str]) -> tuple[str, str] | None:
    """Return the problem of a decimal comma inside `{}`, where YAML reads `rate: 0,5` as `rate: 0` and a key `5`."""
    is_scalar = isinstance(before, yaml.ScalarEvent)
    if not is_scalar or before.end_mark.line != event.start_mark.line:
        return None
    line, start, end = lines[event.start_mark.line], before.start_mark.column, event.end_mark.column
    is_value = re.search(r":\s*$", line[:start])
    return _problem(line[start:end]) if is_value and _DECIMAL_COMMA.fullmatch(line[start:end]) else None
