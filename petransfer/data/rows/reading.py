"""Read the user's rows one at a time, in any supported format."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from petransfer.data.rows import delimited, tables
from petransfer.data.rows.folders import files_of, refuse_unlike_columns
from petransfer.data.rows.json_rows import read_json
from petransfer.data.rows.records import Record, Required, dotted_names
from petransfer.data.rows.source import Source

_ROWS_LOOKED_AT = 100


def column_names(source: Source, required: Required, named: bool) -> list[str] | None:
    """Return the column names of a file or dataset. None for a tsv file without a header.

    For JSON files, the names are the keys of the first 100 rows.

    Args:
        required: Columns that the data must have. They help to detect the delimiter of a csv file.
        named: Whether the user named any column. If False, a tsv file can lack a header.
    """
    files = files_of(source)
    if files != [source]:
        found = [column_names(file, required, named) for file in files]
        refuse_unlike_columns(source, {file.name: names or () for file, names in zip(files, found, strict=True)})
        return found[0]
    match source.format:
        case "tsv" | "csv":
            columns = delimited.detect(source, required, named).columns
            return None if columns is None else list(columns)
        case "jsonl":
            rows = itertools.islice(read_json(source), _ROWS_LOOKED_AT)
            return list(dict.fromkeys(name for row in rows for name in dotted_names(row.values)))
        case "parquet":
            return tables.parquet_columns(source)
        case "arrow":
            return tables.arrow_columns(source)
        case _:
            return tables.dataset_columns(source)


def read(source: Source, required: Required, named: bool, wanted: Sequence[str]) -> Iterator[Record]:
    """Iterate over the rows of a file or dataset, in order. A row of a folder has its place in its own file.

    Args:
        wanted: All columns that are used. Other columns of parquet and arrow files and of datasets are not read.
    """
    files = files_of(source)
    if files != [source]:
        return (replace(record, file=file.name) for file in files for record in read(file, required, named, wanted))
    match source.format:
        case "tsv" | "csv":
            dialect = delimited.detect(source, required, named)
            needed = [name for name in wanted if name in required] or wanted
            return delimited.read_delimited(source, dialect, needed, wanted)
        case "jsonl":
            return read_json(source)
        case "parquet":
            return tables.read_parquet(source, tuple(wanted))
        case "arrow":
            return tables.read_arrow(source, tuple(wanted))
        case _:
            return tables.read_dataset(source, tuple(wanted))
