"""Read the rows of parquet and arrow files, and of datasets that the library `datasets` loads."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from shlex import quote
from typing import Any

from petransfer.data.bad_rows import BadRow
from petransfer.data.hub_network import use_cache_if_unreachable, why_unreachable
from petransfer.data.rows.folders import (
    ONE_BY_ONE,
    SAVED_BY_DATASETS,
    folder_files,
    refuse_mixed_files,
    refuse_unknown_split,
    what_to_name,
)
from petransfer.data.rows.records import Record
from petransfer.data.rows.source import Source
from petransfer.errors import UserError, reason_of
from petransfer.plurals import count

_BATCH = 1000
_SPLITS_SHOWN = 5


def parquet_columns(source: Source) -> list[str]:
    """Return the column names of a parquet file. Fields of a struct are named `outer.inner`."""
    import pyarrow.parquet

    with _refused("parquet", source), pyarrow.parquet.ParquetFile(source.path) as file:
        return _unique_names(_names(file.schema_arrow), source)
    raise AssertionError


def read_parquet(source: Source, columns: tuple[str, ...]) -> Iterator[Record]:
    """Yield the rows of a parquet file. Only the columns in `columns` are read."""
    import pyarrow.parquet

    with _refused("parquet", source), pyarrow.parquet.ParquetFile(source.path) as file:
        wanted = _tops(file.schema_arrow.names, columns)
        batches = file.iter_batches(batch_size=_BATCH, columns=wanted)
        yield from _numbered((row for batch in batches for row in _rows(batch)), _class_labels(file.schema_arrow))


def arrow_columns(source: Source) -> list[str]:
    """Return the column names of an arrow (feather) file. Fields of a struct are named `outer.inner`."""
    with _refused("arrow", source), _open_arrow(source) as reader:
        return _unique_names(_names(reader.schema), source)
    raise AssertionError


def read_arrow(source: Source, columns: tuple[str, ...]) -> Iterator[Record]:
    """Yield the rows of a file in Arrow's file format (feather) or stream format."""
    with _refused("arrow", source), _open_arrow(source) as reader:
        wanted = _tops(reader.schema.names, columns)
        number = getattr(reader, "num_record_batches", None)
        batches = reader if number is None else map(reader.get_batch, range(number))
        rows = (row for batch in batches for row in _sliced(batch.select(wanted)))
        yield from _numbered(rows, _class_labels(reader.schema))


def dataset_columns(source: Source) -> list[str]:
    """Return the column names of a dataset's split. Fields of a struct are named `outer.inner`."""
    return _feature_names(_split(source).features)


def read_dataset(source: Source, columns: tuple[str, ...]) -> Iterator[Record]:
    """Yield the rows of a dataset's split. Class labels are names, not numbers."""
    part = _split(source)
    wanted = _tops(part.column_names, columns)
    kinds = {field.name: field.type for field in part.features.arrow_schema}
    names = {name: _label_names(feature) for name, feature in part.features.to_dict().items()}
    batches = part.select_columns(wanted).iter(_BATCH)
    rows = (zip(batch, row, strict=True) for batch in batches for row in zip(*batch.values(), strict=True))
    yield from _numbered(({name: _short(value, kinds[name]) for name, value in row} for row in rows), names)


def split_names(source: Source) -> list[str]:
    """Return the names of the splits of a folder or dataset. Empty for a file."""
    if source.format != "dataset":
        return []
    files = folder_files(source)
    return list(open_dataset(source) if files is None else files)


def unread_splits_note(sources: Mapping[str, Source]) -> list[str]:
    """Return a note about the splits of the training data that are not read. Empty without such splits.

    Args:
        sources: Files or datasets, by part.
    """
    train = sources["train"]
    read = {source.split for source in sources.values() if (source.name, source.path) == (train.name, train.path)}
    others = [name for name in split_names(train) if name not in read]
    if not others:
        return []
    shown = ", ".join(others[:_SPLITS_SHOWN]) + (", ..." if len(others) > _SPLITS_SHOWN else "")
    return [
        f"{train.name}: {count(len(others), 'split')} not read ({shown}); --dev or --test with the name of a split "
        f"reads it, as in --test {quote(others[0])}"
    ]


def open_dataset(source: Source) -> dict[str, Any]:
    """Return the splits of a dataset by name. The rows stay on disk."""
    import datasets

    datasets.disable_progress_bars()
    unreachable = source.path is None and not use_cache_if_unreachable()
    if unreachable:  # `datasets` has copied the setting at its import, so the copy must be changed too
        datasets.config.HF_HUB_OFFLINE = True
    name, _, revision = source.name.partition("@")
    try:
        if source.path is not None and any((source.path / file).is_file() for file in SAVED_BY_DATASETS):
            found = datasets.load_from_disk(str(source.path))
        elif source.path is not None:
            refuse_mixed_files(source)
            # an absolute path, because `datasets` needs the name of the folder
            found = datasets.load_dataset(str(source.path.resolve()), source.config or None)
        else:
            found = datasets.load_dataset(name, source.config or None, revision=revision or None)
    except UserError:
        raise
    except Exception as error:  # a loader, the hub or the cache can raise any error
        if unreachable:
            raise UserError(
                f"{name} is not on this machine and the hub cannot be reached ({why_unreachable()}); check the "
                "network, or name a file or a folder"
            ) from None
        # this error of `datasets` has its reason in its cause
        generating = isinstance(error, datasets.exceptions.DatasetGenerationError)
        if generating:
            advice = f"give every file the same columns with values of the same kind, or {ONE_BY_ONE}"
        elif "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            advice = "pick a configuration with --set task.options.config=NAME"
        else:
            advice = what_to_name(source)
        reason = reason_of(error.__cause__ or error if generating else error, 160)
        raise UserError(f"`datasets` cannot load {source.name} ({reason}); {advice}") from None
    return dict(found) if isinstance(found, dict) else {"train": found}


def _split(source: Source) -> Any:
    data = open_dataset(source)
    refuse_unknown_split(source, list(data))
    part = data[source.split]
    return part.with_format(None) if hasattr(part, "with_format") else part  # otherwise its values can be tensors


class _Items(list[Any]):
    """A list with one item: the label names of a feature that is a list of labels."""


def _label_names(feature: Any) -> Any:
    """Return the names of a feature's class labels: a list, `_Items` for a list of labels, or a dict by key.

    Args:
        feature: A feature in the form in which the library `datasets` saves it. None is returned if it has no labels.
    """
    if isinstance(feature, list):
        return _Items([names]) if feature and (names := _label_names(feature[0])) else None
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return list(feature["names"])
    if isinstance(feature.get("_type"), str):
        return _label_names([feature.get("feature")])
    return {key: names for key, inner in feature.items() if (names := _label_names(inner))} or None


def _label(value: Any, names: Any) -> Any:
    """Return the name of a class label, also inside of a list or a dict. Other values are returned unchanged.

    Args:
        names: The result of `_label_names`.
    """
    if isinstance(names, _Items):
        return [_label(each, names[0]) for each in value] if isinstance(value, list) else value
    if isinstance(names, dict) and isinstance(value, dict):
        return {key: _label(each, names.get(key)) for key, each in value.items()}
    if not isinstance(names, list) or not isinstance(value, int):
        return value
    if not 0 <= value < len(names):
        # public competitions write -1 in place of the labels of their test sets
        raise BadRow(HIDDEN_LABEL if value == -1 else f"the label {value} has no name")
    return names[value]


HIDDEN_LABEL = "the label is hidden (-1)"


@contextlib.contextmanager
def _open_arrow(source: Source) -> Iterator[Any]:
    import pyarrow

    with pyarrow.OSFile(str(source.path), "rb") as file:
        try:
            reader = pyarrow.ipc.open_file(file)
        except pyarrow.ArrowInvalid:
            file.seek(0)
            reader = pyarrow.ipc.open_stream(file)
        with reader:
            yield reader


@contextlib.contextmanager
def _refused(form: str, source: Source) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{source.name} cannot be read as {form} ({reason_of(error)}); write it again") from None


def _sliced(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    for start in range(0, batch.num_rows, _BATCH):
        yield from _rows(batch.slice(start, _BATCH))


def _rows(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    """Yield the rows of a batch. A row that Python cannot hold is yielded as a BadRow."""
    kinds = {field.name: field.type for field in batch.schema}
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row(batch, at) for at in range(batch.num_rows)]
    for row in rows:
        yield row if isinstance(row, BadRow) else {name: _short(value, kinds[name]) for name, value in row.items()}


def _row(batch: Any, at: int) -> dict[str, Any] | BadRow:
    row: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[at].as_py()
        except UnicodeDecodeError:  # the files can hold any bytes as texts
            return BadRow(f"the column '{name}' is not text in UTF-8; write the file again with valid texts")
        except (ValueError, OverflowError) as error:  # such as a time after the year 9999
            return BadRow(f"the column '{name}' has a value that Python cannot hold", reason_of(error, 80))
    return row


def _short(value: Any, kind: Any) -> Any:
    """Round the 16-bit and 32-bit numbers in a value to their shortest notation: 0.1, not 0.10000000149011612.

    Args:
        kind: The Arrow type of the value.
    """
    import numpy as np
    from pyarrow import types

    if types.is_float32(kind) or types.is_float16(kind):
        narrow = np.float16 if types.is_float16(kind) else np.float32
        return None if value is None else float(str(narrow(value)))
    if isinstance(value, dict) and types.is_struct(kind):
        return {name: _short(inner, kind.field(name).type) for name, inner in value.items()}
    if isinstance(value, list) and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return [_short(inner, kind.value_type) for inner in value]
    return value


def _names(schema: Any, before: str = "") -> list[str]:
    import pyarrow

    names: list[str] = []
    for field in schema:
        name = f"{before}{field.name}"
        names += _names(field.type, f"{name}.") if pyarrow.types.is_struct(field.type) else [name]
    return names


def _unique_names(names: list[str], source: Source) -> list[str]:
    """Return the names. Raise UserError if a name occurs twice."""
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"{source.name}: two columns are named '{twice}'; rename one of them")
    return names


def _feature_names(features: Any, before: str = "") -> list[str]:
    names: list[str] = []
    for name, feature in features.items():
        inside = isinstance(feature, dict)
        names += _feature_names(feature, f"{before}{name}.") if inside else [f"{before}{name}"]
    return names


def _tops(names: list[str], columns: tuple[str, ...]) -> list[str]:
    """Return the columns that contain one of `columns`: `outer` contains `outer.inner`."""
    return [name for name in names if any(column == name or column.startswith(f"{name}.") for column in columns)]


def _class_labels(schema: Any) -> dict[str, Any]:
    """Return the names of the class labels of each column, which the library `datasets` writes into a file's schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: _label_names(feature) for name, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError):  # no such entry, or one of another program
        return {}


def _numbered(rows: Iterator[dict[str, Any] | BadRow], labels: dict[str, Any]) -> Iterator[Record]:
    """Yield numbered rows in which class labels are names, not numbers. `labels`: the names by column."""
    for number, row in enumerate(rows, start=1):
        try:
            if isinstance(row, BadRow):
                raise row
            yield Record(number, {name: _label(value, labels.get(name)) for name, value in row.items()})
        except BadRow as problem:
            yield Record(number, {}, problem)
