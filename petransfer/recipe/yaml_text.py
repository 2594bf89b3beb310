"""Read YAML from untrusted files: size, depth and number of values are limited, and repeated keys are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from petransfer.errors import UserError
from petransfer.recipe.typographic_characters import advice, refuse_typographic_characters

# The parser in C is seven times as fast as the one in Python. Recipes with ten thousand seeds need this speed.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MOST_CHARACTERS, MOST_VALUES, DEEPEST = 5_000_000, 200_000, 40
# Python refuses to read whole numbers with more digits (sys.int_info.default_max_str_digits).
MOST_DIGITS = 4300

_TAG = "tag:yaml.org,2002:"
# The tags of plain values. Other tags would make bytes, Python objects, or sets, which have no order.
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
# The beginning of a date, and a whole number.
_DATE, _DIGITS = re.compile(r"\d{4}-\d\d?-\d\d?"), re.compile(r"[-+]?[0-9_]+")
# Numbers that YAML 1.1 reads in an unexpected way: 1:30 as 90 (base 60), and 010 as 8 (octal).
_SURPRISING = re.compile(r"[-+]?(?:0[0-7_]*[0-7]|[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)")


def parse_yaml(text: str, by_hand: bool = False) -> Any:
    """Parse a YAML text and return its value.

    Args:
        by_hand: Whether a person wrote the text. Characters that editors insert, such as curly quotes, are then
            refused.

    Raises:
        UserError: The text is not YAML, is too large, repeats a key, or has values that YAML reads in an unexpected
            way. The message begins with a verb; the caller adds the file's name.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"has {len(text):,} characters; at most {MOST_CHARACTERS:,} are allowed")
    try:
        if by_hand:
            refuse_typographic_characters(yaml.parse(text, LOADER), text, DEEPEST)
        _check_structure(text)
        return yaml.load(text, LOADER)
    except yaml.YAMLError as error:
        raise UserError(f"is not YAML: {_one_line(error)}{_advice(error, text)}") from None
    except (ValueError, OverflowError, TypeError, RecursionError) as error:  # invalid dates and numbers
        raise UserError(f"holds a value that cannot be read: {_one_line(error)}") from None


@dataclass
class _Collection:
    """A list or mapping that is being parsed.

    values: number of values in it, with aliases expanded.
    keys: the keys that were read so far. Empty for a list.
    expects_key: whether the next value in a mapping is a key.
    """

    anchor: str | None
    is_mapping: bool
    values: int = 1
    keys: set[str] = field(default_factory=set)
    expects_key: bool = True


def _check_structure(text: str) -> None:
    """Refuse a YAML text without building its value; see `parse_yaml`."""
    stack: list[_Collection] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, LOADER):
        _refuse_unexpected(event)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append(_Collection(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(stack) > DEEPEST:
                raise UserError(f"is nested more than {DEEPEST} levels deep")
            if event.anchor:
                sizes.pop(event.anchor, None)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = stack.pop()
            if done.anchor:
                sizes[done.anchor] = done.values
            _add(stack, done.values)
        elif isinstance(event, yaml.AliasEvent):
            if any(one.anchor == event.anchor for one in stack):
                raise UserError(
                    f"contains itself: the alias *{event.anchor:.40} is used inside its own anchor &{event.anchor:.40}"
                )
            _add(stack, sizes.get(event.anchor or "", 1))
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                sizes[event.anchor] = 1
            if stack and stack[-1].is_mapping and stack[-1].expects_key:
                _note_key(stack[-1], event)
            _add(stack, 1)


def _refuse_unexpected(event: Any) -> None:
    if getattr(event, "tag", None):
        _refuse_tag(event)
    elif isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
        _refuse_surprising(event)


def _refuse_tag(event: Any) -> None:
    """Refuse all tags except the tags of plain values."""
    if event.tag not in {None, "!", *_PLAIN_TAGS}:
        name, line = event.tag.replace(_TAG, "!!"), event.start_mark.line + 1
        raise UserError(f"has the tag {name:.60} in line {line}; write plain values without tags")


def _refuse_surprising(event: Any) -> None:
    """Refuse a number that YAML reads in base 60 or in octal, and a number or a date that Python cannot hold."""
    text, line = event.value[:100], event.start_mark.line + 1
    is_date = _DATE.match(text)
    if is_date or (len(event.value) > MOST_DIGITS and _DIGITS.fullmatch(event.value)):
        try:
            yaml.safe_load(event.value)
        except ValueError:
            what = "which is not a date" if is_date else f"a number of more than {MOST_DIGITS:,} digits"
            raise UserError(f"has {text:.30} in line {line}, {what}; correct it, or put it in quotes") from None
    if _SURPRISING.fullmatch(text):
        read = yaml.safe_load(text)
        raise UserError(
            f"has {text:.60} in line {line}, which YAML reads as the number {read}; write {read}, or put it in "
            "quotes if it is text"
        )


def _add(stack: list[_Collection], values: int) -> None:
    """Add the values of a finished node to the count of the enclosing collection."""
    if not stack:
        return
    outer = stack[-1]
    outer.values += values
    outer.expects_key = not outer.expects_key
    if outer.values > MOST_VALUES:
        raise UserError(f"has more than {MOST_VALUES:,} values after its aliases are expanded")


def _note_key(mapping: _Collection, event: Any) -> None:
    """Record a key of a mapping. Raise UserError if the mapping already has this key."""
    if event.value in mapping.keys and event.value != "<<":
        line = event.start_mark.line + 1
        raise UserError(f"has the key '{event.value:.60}' twice (again in line {line}); keep one")
    mapping.keys.add(event.value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace('in "<unicode string>", ', "in ").split())[:160]


def _advice(error: yaml.YAMLError, text: str) -> str:
    """Return advice for an error in a line with a tab as indentation, or with characters such as curly quotes."""
    mark = getattr(error, "problem_mark", None)
    lines = text.split("\n")
    at = mark.line if mark else len(lines)
    line = lines[at] if at < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "; indent with spaces instead of tabs"
    return advice(lines, at)
