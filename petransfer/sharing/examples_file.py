"""Read examples.parquet, the outcomes of a run's test examples, and remove the texts from it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from petransfer.errors import UserError, reason_of
from petransfer.sharing.bundle_files import EXAMPLES
from petransfer.study.examples_table import write_table
from petransfer.unreadable_files import refuse_unreadable

# The columns without inputs, targets and generated texts.
FIGURES = ("index", "category", "correct", "margin", "log_prob", "tokens", "tokens_correct", "semantic_correct")
# The largest number of rows that are read. A parquet file of a few hundred kilobytes can contain billions of equal
# rows, which would fill the memory.
ROWS = 5_000_000
_OTHER_VALUES = f"{EXAMPLES} holds other values than a run writes; get it again"


def read_table(path: Path, kinds: Mapping[str, pyarrow.DataType] | None = None) -> pyarrow.Table:
    """Return the table in examples.parquet.

    Args:
        kinds: the columns to read, each with its type. None means all columns.

    Raises:
        UserError: the file cannot be read, has more than ROWS rows, or a column is missing or has another type.
    """
    refuse_unreadable(path, EXAMPLES)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            count = file.metadata.num_rows
            if count > ROWS:
                raise UserError(f"{EXAMPLES} has {count:,} rows; at most {ROWS:,} are read")
            # check the types before reading: a small file could contain texts instead of numbers, which fill the memory
            found = {field.name: field.type for field in file.schema_arrow}
            if any(found.get(name) != kind for name, kind in (kinds or {}).items()):
                raise UserError(_OTHER_VALUES)
            return file.read(columns=None if kinds is None else list(kinds))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = reason_of(error, 100)
        raise UserError(f"{EXAMPLES} cannot be read ({reason}); get it again") from None


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the columns `index`, `correct` and `log_prob` of each row of examples.parquet.

    Raises:
        UserError: the file cannot be read, or a column has a wrong type.
    """
    table = read_table(path, {"index": pyarrow.int64(), "correct": pyarrow.bool_(), "log_prob": pyarrow.float64()})
    if any(column.null_count for column in table.columns):
        raise UserError(_OTHER_VALUES)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def without_texts(path: Path) -> bytes:
    """Return the bytes of examples.parquet without inputs, targets and generated texts."""
    table = read_table(path)
    kept = table.select([name for name in FIGURES if name in table.column_names]).replace_schema_metadata(None)
    sink = io.BytesIO()
    write_table(kept, sink)
    return sink.getvalue()
