"""Find the rows in a JSON file that is one object, as pandas and other programs write it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from petransfer.errors import UserError

Rows = list[dict[str, Any]]
# Keys under which programs write a list of rows, keys of a single row, and names of splits.
_LISTS = ("data", "rows", "examples", "records", "items", "instances")
_OF_A_ROW = ("input", "target", "prompt", "completion", "messages", "conversations")
_SPLITS = ("train", "training", "dev", "val", "valid", "validation", "eval", "test", "testing")
# An object with more texts than this is a dictionary of texts and not a row.
_MOST_COLUMNS = 30


def rows_in(value: Mapping[str, Any], name: str) -> Rows | None:
    """Return the rows in the only object of a JSON file. None if the object is a row itself.

    The object can have a format of pandas' `to_json` (`columns`, `index`, `split`, `table`), one list for each column,
    or a list of rows under a key such as `data`.

    Raises:
        UserError: The object has several splits, or rows that do not fit its column names.
    """
    if not value:
        return None
    if all(key in _SPLITS and _is_rows(rows) for key, rows in value.items()):
        return _only_split(value, name)
    if {"columns", "data"} <= value.keys() <= {"columns", "index", "data"} and _are(list, value["data"]):
        return _of_table(value["columns"], value["data"], name)
    found = [key for key in _LISTS if _is_rows(value.get(key))]
    if len(found) == 1 and not any(key in value for key in _OF_A_ROW):
        parts = {key: rows for key, rows in value.items() if key == found[0] or (key in _SPLITS and _is_rows(rows))}
        return _only_split(parts, name)
    if len(value) > _MOST_COLUMNS and _are(str, list(value.values())):
        command = f"jq -c 'to_entries[] | {{input: .key, target: .value}}' {shlex.quote(name)} > pairs.jsonl"
        raise UserError(
            f"{name} is one object with {len(value):,} texts by name, and no rows; write rows with `{command}`"
        )
    if _are(dict, list(value.values())):
        return _of_dictionaries(value)
    lists = list(value.values())
    if _are(list, lists) and len({len(each) for each in lists}) == 1 and not any(map(_has_containers, lists)):
        return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    return None


def _of_table(columns: Any, rows: list[list[Any]], name: str) -> Rows:
    if not _are(str, columns) or len(set(columns)) < len(columns):
        raise UserError(f"{name}: the names in 'columns' are not different texts; rename the columns")
    wrong = next((number for number, row in enumerate(rows, start=1) if len(row) != len(columns)), None)
    if wrong is not None:
        raise UserError(
            f"{name}: row {wrong:,} in 'data' has {len(rows[wrong - 1])} values for {len(columns)} columns; correct it"
        )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _only_split(value: Mapping[str, Any], name: str) -> Rows:
    if len(value) == 1:
        return list(next(iter(value.values())))
    first = next(iter(value))
    command = f"jq -c '.{first}[]' {shlex.quote(name)} > {first}.jsonl"
    raise UserError(
        f"{name} is one object with the lists {', '.join(map(repr, value))}; write each list to a separate file, for "
        f"example with `{command}`, and name them with --dev and --test"
    )


def _of_dictionaries(value: Mapping[str, Any]) -> Rows | None:
    """Return the rows of an object of objects: `{column: {number: value}}` or `{number: row}`. None for others."""
    inner = list(value.values())
    numbered = list(inner[0])
    same_keys = all(each.keys() == inner[0].keys() for each in inner)
    if same_keys and numbered and all(key.isdigit() for key in numbered):
        return [{column: cells[key] for column, cells in value.items()} for key in numbered]
    return inner if all(key.isdigit() for key in value) else None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _are(dict, value)


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(each, kind) for each in values)


def _has_containers(values: list[Any]) -> bool:
    return any(isinstance(each, list | dict) for each in values)
