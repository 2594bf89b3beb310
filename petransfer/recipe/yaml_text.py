"""Read YAML that may be hostile or damaged, with limits on size and depth, expanded aliases and no duplicate keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from petransfer.errors import UserError

# The C parser is seven times as fast, which recipes with ten thousand seeds need.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MOST_CHARACTERS, MOST_VALUES, DEEPEST = 5_000_000, 200_000, 40


def parse_yaml(text: str) -> Any:
    """Parse a YAML text and return its value.

    Raises:
        UserError: the text is not YAML; or it is too long, nested too deeply, repeats a key, contains itself, or has
            too many values with its aliases expanded. The message has no subject: the caller adds the file.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"has {len(text):,} characters; at most {MOST_CHARACTERS:,} are allowed")
    try:
        _check_structure(text)
        return yaml.load(text, LOADER)
    except yaml.YAMLError as error:
        raise UserError(f"is not YAML: {_one_line(error)}") from None
    except (ValueError, OverflowError, TypeError, RecursionError) as error:  # invalid dates and numbers
        raise UserError(f"holds a value that cannot be read: {_one_line(error)}") from None


@dataclass
class _Collection:
    """A list or mapping that is being parsed. values: the number of its values, with aliases expanded."""

    anchor: str | None
    is_mapping: bool
    values: int = 1
    keys: set[str] = field(default_factory=set)
    expects_key: bool = True


def _check_structure(text: str) -> None:
    """Check the text event by event, without building any value."""
    stack: list[_Collection] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, LOADER):
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
                raise UserError(f"contains itself: *{event.anchor:.40} stands inside &{event.anchor:.40}")
            _add(stack, sizes.get(event.anchor or "", 1))
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                sizes[event.anchor] = 1
            if stack and stack[-1].is_mapping and stack[-1].expects_key:
                _note_key(stack[-1], event)
            _add(stack, 1)


def _add(stack: list[_Collection], values: int) -> None:
    """Add the values of a finished node to the count of the enclosing collection."""
    if not stack:
        return
    outer = stack[-1]
    outer.values += values
    outer.expects_key = not outer.expects_key
    if outer.values > MOST_VALUES:
        raise UserError(f"stands for more than {MOST_VALUES:,} values")


def _note_key(mapping: _Collection, event: Any) -> None:
    if event.value in mapping.keys and event.value != "<<":
        line = event.start_mark.line + 1
        raise UserError(f"has the key '{event.value:.60}' twice (again in line {line}); keep one")
    mapping.keys.add(event.value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
