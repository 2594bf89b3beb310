"""Reads the user's rows as a stream, whatever their format."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from petransfer.data.rows import delimited, tables
from petransfer.data.rows.json_rows import read_json
from petransfer.data.rows.records import Record, Required, dotted_names
from petransfer.data.rows.source import Source

_ROWS_LOOKED_AT = 100


def column_names(source: Source, required: Required, named: bool) -> list[str] | None:
    """The columns of a file or dataset; None where a tsv file has no header, so that columns go by their place.

    In JSON, where each row has keys of its own, they are those of the first rows.

    Raises:
        UserError: The file cannot be read.
    """
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
    """Read the rows in their order; blank lines are passed over.

    Args:
        required: The columns that must be there, by which the delimiter of a csv file is found.
        named: Whether the user named columns; otherwise a tsv file may lack a header.
        wanted: All columns that are used; a table's other columns are not read.

    Raises:
        UserError: The file cannot be read.
    """
    match source.format:
        case "tsv" | "csv":
            return delimited.read_delimited(source, delimited.detect(source, required, named))
        case "jsonl":
            return read_json(source)
        case "parquet":
            return tables.read_parquet(source, tuple(wanted))
        case "arrow":
            return tables.read_arrow(source, tuple(wanted))
        case _:
            return tables.read_dataset(source, tuple(wanted))
