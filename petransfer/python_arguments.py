"""Check the arguments of the public Python functions, which can be objects of any type."""

from __future__ import annotations

import contextlib
import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from petransfer.errors import RunError, UserError, shortened
from petransfer.plurals import count

Choice = TypeVar("Choice", bound=str)

_SHOWN = 40
# A command in backticks, or an option of the command line. Options of other programs are written with underscores.
_COMMAND_OR_OPTION = re.compile(r"`[^`]*`|(?<![\w-])--([a-z]+(?:-[a-z]+)*)(?![\w-])")
# Options whose argument in Python has another name. The name of any other option is the argument's, with hyphens.
_ARGUMENTS = {
    "batch": "batch_size",
    "checkpointing": "gradient_checkpointing",
    "lr": "learning_rate",
    "metric": "metrics",
    "micro-batch-size": "micro_batch",
    "no-evaluate": "evaluate=False",
    "set": "overrides",
}


@contextlib.contextmanager
def naming_arguments() -> Iterator[None]:
    """Make the error messages of a public function name its arguments, such as 'out', instead of options (--out)."""
    try:
        yield
    except (UserError, RunError) as error:
        error.args = (_COMMAND_OR_OPTION.sub(_argument, str(error)), *error.args[1:])
        raise


def _argument(found: re.Match[str]) -> str:
    option = found[1]
    return f"'{_ARGUMENTS.get(option, option.replace('-', '_'))}'" if option else found[0]


def checked_path(value: Any, what: str) -> str:
    """Return a path or a name as text.

    Args:
        what: Name of the argument in messages.

    Raises:
        UserError: The value is neither text nor a path.
    """
    if isinstance(value, str | Path):
        return str(value)
    advice = ""
    if hasattr(value, "save_to_disk"):  # from `datasets`; JSON would have numbers instead of label names
        advice = f"write it to a folder, such as {what}.save_to_disk('rows')"
    elif hasattr(value, "write_parquet"):  # a table of polars
        advice = f"write it to a file, such as {what}.write_parquet('rows.parquet')"
    elif isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
        advice = (
            f"write it to a file, such as pandas.DataFrame({what}).to_json('rows.jsonl', orient='records', lines=True)"
        )
    if advice:
        raise UserError(f"{what} must be a file or a name, but it is a {type(value).__name__}; {advice}")
    if hasattr(value, "to_json"):  # a table of pandas
        advice = f"write it to a file, such as {what}.to_json('rows.jsonl', orient='records', lines=True)"
        raise UserError(f"{what} must be a file or a name, but it is a {type(value).__name__}; {advice}")
    if isinstance(value, Sequence) and not isinstance(value, bytes):  # rows
        advice = (
            f"write them to a file, such as pandas.DataFrame({what}, columns=['input', 'target'])"
            ".to_json('rows.jsonl', orient='records', lines=True)"
        )
        raise UserError(f"{what} must be a file or a name, but it has {count(len(value), 'row')}; {advice}")
    raise UserError(f"{what} is {shown_value(value)}; give a path or a name as text")


def checked_device(value: Any) -> Any:
    """Return a device unchanged, if PyTorch can use it on this machine.

    Raises:
        UserError: There is no such device.
    """
    import torch  # slow to import

    if value is None:
        return None
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise UserError(f"device is {shown_value(value)}; give cpu, cuda or cuda:0") from None
    if problem := _why_unusable(device):
        raise UserError(f"device is {shown_value(value)}, but {problem}")
    return value


def checked_integer(value: Any, what: str, least: int = 1, most: int | None = None) -> int:
    """Return a whole number as an int.

    Args:
        what: Name of the argument in messages.

    Raises:
        UserError: The value is not a whole number, or is not from `least` to `most`.
    """
    if is_whole(value) and value >= least and (most is None or value <= most):
        return int(value)
    limits = f"of at least {least}" if most is None else f"from {least} to {most:,}"
    raise UserError(f"{what} is {shown_value(value)}; give a whole number {limits}")


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, such as an int or a NumPy integer. True and False do not count."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def checked_number(value: Any, what: str, least: float = 0.0) -> float:
    """Return a number as a float.

    Raises:
        UserError: The value is not a number, or is below `least`.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and (number := float(value)) >= least:
        return number
    raise UserError(f"{what} is {shown_value(value)}; give a number of at least {least:g}")


def checked_bool(value: Any, what: str) -> bool:
    """Return True or False, which can be given as 1 or 0.

    Raises:
        UserError: The value is something else, such as the text `no`.
    """
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise UserError(f"{what} is {shown_value(value)}; give True or False")


def checked_choice(value: Choice, what: str, choices: Sequence[str]) -> Choice:
    """Return a name unchanged.

    Raises:
        UserError: The value is not one of `choices`.
    """
    if isinstance(value, str) and value in choices:
        return value
    raise UserError(f"{what} is {shown_value(value)}; give {' or '.join(choices)}")


def checked_name(value: Any, what: str) -> str:
    """Return a name unchanged.

    Raises:
        UserError: The value is not text.
    """
    if not isinstance(value, str):
        raise UserError(f"{what} is {shown_value(value)}; give a name as text")
    return value


def _why_unusable(device: Any) -> str:
    """Return why PyTorch cannot use a device on this machine, and what to give instead. Empty if it can."""
    import torch

    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not found:
            return "PyTorch finds no GPU on this machine; give cpu, or install PyTorch with CUDA"
        if (device.index or 0) >= found:
            names = " or ".join(f"cuda:{at}" for at in range(found))
            return f"PyTorch finds {count(found, 'GPU')} on this machine; give {names}"
    elif device.type != "cpu":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, ImportError):
            return "PyTorch cannot use it on this machine; give cpu, cuda or cuda:0"
    return ""


def checked_list(value: Any, what: str) -> list[Any]:
    """Return several values as a list.

    Raises:
        UserError: There is only one value.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UserError(f"{what} is {shown_value(value)}; give a list, such as [{value}]")
    return list(value)


def checked_names(value: Any, what: str) -> tuple[str, ...]:
    """Return one name or several names as a tuple.

    Raises:
        UserError: A name is not text.
    """
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{what} is {shown_value(value)}; give a list of names")
    return names


def checked_texts(values: Any) -> list[str]:
    """Return inputs as a list of texts.

    Raises:
        UserError: The values are not a list, or one of them is not text.
    """
    if isinstance(values, str):
        raise UserError("predict needs a list of texts; write predict([text]) for one text")
    if isinstance(values, Mapping) or hasattr(values, "columns") or not isinstance(values, Iterable):
        advice = "give a list of texts, such as frame['input'] for the column of a table"
        raise UserError(f"predict got a {type(values).__name__}; {advice}")
    return [_text(value, f"input {at}") for at, value in enumerate(values, start=1)]


def text_pairs(values: Any) -> list[tuple[str, str]]:
    """Return pairs of input and target as a list.

    Args:
        values: Pairs, rows with the keys `input` and `target`, or a table with these columns.

    Raises:
        UserError: A row has another form, or a text is missing.
    """
    rows = values.to_dict("records") if hasattr(values, "to_dict") and hasattr(values, "columns") else values
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise UserError(f"the data cannot be a {type(values).__name__}; {_PAIRS}")
    return [_pair(row, at) for at, row in enumerate(rows, start=1)]


_PAIRS = "give pairs of input and target, rows with the keys input and target, or the name of a file"


def _pair(row: Any, number: int) -> tuple[str, str]:
    if isinstance(row, Mapping):
        missing = [key for key in ("input", "target") if key not in row]
        if missing:
            has = ", ".join(map(str, row))
            raise UserError(f"row {number} has no '{missing[0]}' (it has: {shortened(has, 80)}); {_PAIRS}")
        row = (row["input"], row["target"])
    if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 2:
        raise UserError(f"row {number} is {shown_value(row)}; {_PAIRS}")
    return _text(row[0], f"the input of row {number}"), _text(row[1], f"the target of row {number}")


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    is_nan = isinstance(value, float) and math.isnan(value)
    if value is None or is_nan or type(value).__name__ in {"NAType", "NaTType"}:
        raise UserError(f"{what} is missing ({value}); remove this row, or give a text")
    advice = "json.dumps(...) makes a text from it" if isinstance(value, Mapping | list) else "convert it with str()"
    raise UserError(f"{what} is not a text but {shown_value(value)}; {advice}")


def shown_value(value: Any) -> str:
    """Return a value and its type for a message, on one line."""
    return f"{shortened(' '.join(repr(value).split()), _SHOWN)} (a {type(value).__name__})"
