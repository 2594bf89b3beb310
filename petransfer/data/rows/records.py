"""One row of the user's data, and the values of its columns."""

from __future__ import annotations

import datetime
import decimal
import math
import shlex
import unicodedata
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petransfer.data.bad_rows import BadRow
from petransfer.errors import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file, before its values are checked.

    Args:
        line: Line where the row begins, or number of the row in a file without lines. Counted from 1.
        values: Value of each column.
        problem: Why the row could not be read. None for a good row.
        left_out: Columns for which the row has no cell. Their value is the empty text.
        file: Name of the row's file if the row was read from a folder. Otherwise empty.
    """

    line: int
    values: Mapping[str, Any]
    problem: BadRow | None = None
    left_out: tuple[str, ...] = ()
    file: str = ""

    def place(self, source: str) -> str:
        """Return the row's file and line for messages, such as `data.csv:3`. `source`: name of the row's source."""
        return f"{self.file or source}:{self.line}"


# The columns that the data must have, each with the task option that sets it.
Required = Mapping[str, str]
_FLAGS = {"input_column": "--input-column", "target_column": "--target-column", "template": "--template"}


_PARAGRAPHS = (
    "the rows seem to be paragraphs with questions, as in SQuAD; write one row per question with `jq -c '.data[]."
    "paragraphs[] | .context as $c | .qas[] | {{context: $c, question, answer: .answers[0].text}}' {name} > "
    "rows.jsonl`, and use --template '{{context}} {{question}}' --target-column answer"
)


class MissingColumn(UserError):
    """The error for data without a required column. `problem`: the message without the advice."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}; {advice}")
        self.problem = problem


def value_of(values: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column in a row.

    `translation.en` also means the key `en` inside the column `translation`. A number is a position in a list, as in
    `answers.text.0`. The result is None if an outer value is None.

    Raises:
        KeyError: The row has no such column.
    """
    if column in values:
        return values[column]
    found: Any = values
    for part in column.split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, Sequence) and not isinstance(found, str) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif found is None:
            return None
        else:
            raise KeyError(column)
    return found


def has_column(names: Iterable[str], column: str) -> bool:
    """Return whether `column` is in `names`, or can be inside a column in `names`."""
    known = set(names)
    parts = column.split(".")
    if column in known:
        return True
    tops = [".".join(parts[:count]) for count in range(1, len(parts))]
    # if `names` has only `answers`, whether a row has `answers.text.0` is not known before the row is read
    inside = [top for top in tops if top in known]
    # the rest may be in a list of unknown length, or in a struct whose keys are not listed
    return bool(inside) and not any(name.startswith(f"{inside[-1]}.") for name in known)


def dotted_names(values: Mapping[str, Any]) -> list[str]:
    """Return the column names of a row. A key of a dictionary in a column is named `column.key`."""
    names: list[str] = []
    for name, value in values.items():
        inner = [f"{name}.{key}" for key in dotted_names(value)] if isinstance(value, Mapping) else []
        names += inner or [name]
    return names


def missing_column(
    name: str, required: Required, found: Sequence[str], advice: str = "", in_list: str = ""
) -> UserError:
    """Return the error for missing columns. The message lists all of them, and the existing columns.

    Args:
        advice: What to do. Empty: to name other columns.
        in_list: Name of a text inside of a list, as an example. Empty: no column has lists.
    """
    missing = {column: option for column, option in required.items() if not has_column(found, column)}
    exist = ", ".join(_shown(str(each)[:30]) for each in list(found)[:20]) or "no columns"
    columns = " and ".join(f"'{column}'" for column in missing)
    problem = f"{name} has no column{'s' if len(missing) > 1 else ''} {columns} (it has: {exist})"
    if advice:
        return MissingColumn(problem, advice)
    if "paragraphs" in found:
        return MissingColumn(problem, _PARAGRAPHS.format(name=shlex.quote(name)))
    if len(found) == 1 and len(required) > 1:
        return MissingColumn(
            problem,
            "a row needs an input and a target: split the texts into two columns, or into the messages of chats as in "
            '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}',
        )
    if "target_column" in missing.values() and "template" not in required.values():
        advice = _advice_for_usual(set(map(str, found)))
        if advice:
            return MissingColumn(problem, advice)
    values = {option: _value(column, option, found) for column, option in missing.items()}
    flags = " ".join(f"{_FLAGS[option]} {value}" for option, value in values.items() if option in _FLAGS)
    sets = " ".join(f"--set task.options.{option}={value}" for option, value in values.items())
    has_flags = all(option in _FLAGS for option in values)
    objects = any(name.startswith(f"{column}.") for column in missing for name in map(str, found))
    whole = f"; {_WHOLE}" if objects and "template" not in values else ""
    inside = f"; a text inside of a list is named by its place, such as {in_list}" if in_list else ""
    return MissingColumn(problem, f"name yours with {f'{flags}, or ' if has_flags else ''}{sets}{whole}{inside}")


def place_in_list(values: Mapping[str, Any]) -> str:
    """Return the name of the first text that is inside of a list, such as `answers.0.text`. '' without such a text."""
    return next((name for name in _text_places(values) if any(part.isdigit() for part in name.split("."))), "")


def _text_places(value: Any) -> Iterator[str]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        if isinstance(inner, str):
            yield str(key)
        yield from (f"{key}.{name}" for name in _text_places(inner))


def _advice_for_usual(names: set[str]) -> str:
    """Return the advice for columns of datasets for instructions, preferences or single messages. '' for others."""
    answer = next((name for name in ("output", "response", "answer") if name in names), None)
    if "instruction" in names and answer:
        template = instruction_template(names)
        return (
            f"read instructions with --template '{template}' --target-column {answer}, or --set "
            f"task.options.template='{template}' --set task.options.target_column={answer}"
        )
    if {"chosen", "rejected"} <= names:
        options = "train on the chosen answers with --input-column prompt --target-column chosen"
        if "prompt" not in names:
            options = (
                "train on the chosen answers with --set task.options.messages=chosen if they are JSON lists of "
                "messages; else split each text in 'chosen' before its last answer into input and target"
            )
        return f"there is no preference training; {options}"
    if "custom_id" in names and any(name.startswith("response.") for name in names):
        return (
            "these rows are the answers of a batch without their requests; write rows with both, joined by custom_id, "
            'as in {"input": REQUEST, "target": ANSWER}'
        )
    if {"input_text", "output_text"} <= names:
        return "use --input-column input_text --target-column output_text"
    if {"role", "content"} <= names:
        return (
            "each row is one message, and a row must be a whole chat, as in "
            '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
        )
    return ""


def instruction_template(names: Container[str]) -> str:
    """Return a template with the column `instruction` and, if they are in `names`, the columns `input` and `context`.

    >>> instruction_template(["instruction", "input", "output"])
    '{instruction} {input}'
    """
    return " ".join(f"{{{name}}}" for name in ("instruction", "input", "context") if name in names)


def _value(column: str, option: str, found: Sequence[str]) -> str:
    """Suggest the value of an option for a missing column: a column that looks alike or is nested, or else COLUMN."""
    names = [str(each) for each in found]
    alike = next((name for name in names if normalised_name(name) == normalised_name(column)), None)
    alike = alike or next((name for name in names if name.startswith(f"{column}.")), None)
    return "'{COLUMN}'" if option == "template" else "COLUMN" if alike is None else _in_shell(alike)


def normalised_name(name: str) -> str:
    """Normalise case, blanks and invisible characters of a name, so that names that look alike become equal."""
    seen = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    return unicodedata.normalize("NFKC", " ".join(seen.split()).casefold())


def _in_shell(name: str) -> str:
    """Return a name as an argument for a shell such as bash, with escapes for characters beyond ASCII."""
    if name.isascii() and name.isprintable():
        return shlex.quote(name)
    plain = [sign.isascii() and sign.isprintable() and sign not in "\\'" for sign in name]
    signs = [sign if same else f"\\U{ord(sign):08x}" for sign, same in zip(name, plain, strict=True)]
    return f"$'{''.join(signs)}'"


_WRITTEN = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)


# The keys of role and content in chat datasets: the usual keys, the keys of ShareGPT, and the keys of Gemini.
MESSAGE_KEYS = (("role", "content"), ("from", "value"), ("role", "parts"))


def is_messages(value: Any) -> bool:
    """Return whether a value is a list of messages, each with a role."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and any(first.keys() >= set(keys) for keys in MESSAGE_KEYS)


def _shown(name: str) -> str:
    return name if name == name.strip() else f"'{name}'"


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


_WHOLE = "to use the whole object, write it as text, such as json.dumps makes it"


def as_text(value: Any, name: str, column: str = "") -> str:
    """Return a value as text. Numbers and booleans are written as in JSON, dates and times as in ISO 8601.

    Args:
        name: Name of the value in messages.
        column: Name of the value's column, if it differs.

    Raises:
        BadRow: The value is missing (None or NaN), infinite, a list or dictionary, or bytes that are not UTF-8.
    """
    if isinstance(value, str):
        return value
    if is_missing(value):
        raise BadRow(f"the {name} is missing" if value is None else f"the {name} is missing (NaN)")
    if isinstance(value, float) and math.isinf(value):
        raise BadRow(f"the {name} is infinite, and JSON has no infinite numbers; write it as text")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, _WRITTEN):
        return str(value)
    if isinstance(value, bytes):  # some programs write texts to parquet files as bytes
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadRow(f"the {name} is bytes, not text in UTF-8") from None
    column = column or name
    if is_messages(value):
        raise BadRow(
            f"the {name} is a list of messages; to train chats, use --set task.options.messages={column} alone"
        )
    if isinstance(value, list) and value:
        raise BadRow(
            f"the {name} is a list, not text; '{column}.0' names its first item; to use all, join them into one text"
        )
    if isinstance(value, Mapping) and value:
        raise BadRow(f"the {name} is an object, not text; '{column}.{next(iter(value))}' names a value in it; {_WHOLE}")
    raise BadRow(f"the {name} is a {type(value).__name__}, not text")
