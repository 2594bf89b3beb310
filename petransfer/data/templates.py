"""Templates that make an input from one or more columns, such as `"summarize: {document}"`."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import string
from collections.abc import Mapping
from typing import Any

from petransfer.data.bad_rows import BadRow
from petransfer.data.rows.records import as_text, is_missing, value_of
from petransfer.errors import UserError

# `_values_in` only searches inputs of at most this many characters.
_LONGEST = 200


@functools.lru_cache(maxsize=64)
def fields_of(template: str, column: str = "input") -> tuple[str, ...]:
    """Return the names of the columns in a template, each once. For an empty template: only `column`."""
    if not template:
        return (column,)
    try:
        parts = [
            (name, form, change) for _, name, form, change in string.Formatter().parse(template) if name is not None
        ]
    except ValueError as error:
        raise UserError(
            f"the template {template!r} is broken ({error}); write columns in braces: {{document}}"
        ) from None
    found = [str(name) for name, _, _ in parts]
    formatted = next((name for name, form, change in parts if form or change), None)
    if formatted:
        raise UserError(
            f"the template {template!r} formats {formatted!r}; write only the column's name in braces, and braces that "
            "are text as {{ and }}; rename a column whose name has a colon, an exclamation mark or braces"
        )
    if not found or not all(found):
        raise UserError(f"the template {template!r} names no column; write columns in braces: {{document}}")
    return tuple(dict.fromkeys(found))


def render(template: str, values: Mapping[str, str]) -> str:
    """Replace every `{column}` of a template by its value. Braces inside values are not changed."""
    parts = string.Formatter().parse(template)
    return "".join(text + (values[name] if name is not None else "") for text, name, _, _ in parts)


def render_text(template: str, text: str, place: str = "the input") -> str:
    """Make an input from a text that a user gave. Without a template, the input is the text.

    Args:
        text: The value of the template's column. For several columns: a JSON object with them.
        place: Where the text was read, for messages.

    Raises:
        UserError: The text is not a JSON object with the template's columns, or a value is not text or a number.
    """
    if not template:
        return text
    columns = fields_of(template)
    if len(columns) == 1:
        return render(template, {columns[0]: text})
    values: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(text)
    try:
        given = {column: value_of(values, column) for column in columns}
        if not all(map(is_missing, given.values())):  # as in the rows of training
            given = {column: "" if is_missing(value) else value for column, value in given.items()}
        found = {column: as_text(value, column) for column, value in given.items()}
    except BadRow as problem:
        raise UserError(f"{place} ({text[:40]!r}) cannot be used: {problem}") from None
    except (TypeError, KeyError):
        raise UserError(
            f"{place} ({text[:40]!r}) is not a JSON object with {', '.join(columns)}, the columns of the template"
        ) from None
    return render(template, found)


def given_text(template: str, rendered: str = "") -> str:
    """Return an example text for a command: a text from which `render_text` makes an input.

    Args:
        rendered: Input whose values are used. If it is empty or does not match the template, the text has values such
            as `the document`.

    >>> given_text("{question}: {context}", "Who?: Ada")
    '{"question": "Who?", "context": "Ada"}'
    """
    if not template:
        return rendered or "an input"
    columns = fields_of(template)
    values = _values_in(template, rendered) or {name: f"the {name}" for name in columns}
    return values[columns[0]] if len(columns) == 1 else json.dumps(values, ensure_ascii=False)


def _values_in(template: str, rendered: str) -> dict[str, str]:
    """Return values from which the template makes `rendered`. Empty if there are none."""
    columns, pattern = fields_of(template), ""
    for text, name, _, _ in string.Formatter().parse(template):
        pattern += re.escape(text)
        if name is not None:  # a column that occurs again has the same value
            group = f"c{columns.index(name)}"
            pattern += f"(?P={group})" if f"<{group}>" in pattern else f"(?P<{group}>.*?)"
    # a search in a long text could take long
    found = re.fullmatch(pattern, rendered, re.DOTALL) if len(rendered) <= _LONGEST else None
    return {name: found[f"c{at}"] for at, name in enumerate(columns)} if found else {}
