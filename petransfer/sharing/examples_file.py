"""Read examples.parquet, the outcomes of a run's test examples, and remove the texts from it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from petransfer.errors import UserError, reason_of
from petransfer.sharing.bundle_files import EXAMPLES

# The columns without inputs, targets and generated texts.
FIGURES = ("index", "category", "correct", "margin", "log_prob", "tokens", "tokens_correct", "semantic_correct")
# The largest number of rows that are read. A parquet file of a few hundred kilobytes can contain billions of equal
# rows, which would fill the memory.
ROWS = 5_000_000


def read_table(path: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Return the table in examples.parquet. `columns` selects columns by name; None means all.

    Raises:
        UserError: the file cannot be read, or has more than ROWS rows.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            count = file.metadata.num_rows
            if count > ROWS:
                raise UserError(f"{EXAMPLES} has {count:,} rows; at most {ROWS:,} are read")
            return file.read(columns=None if columns is None else list(columns))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = reason_of(error, 100)
        raise UserError(f"{EXAMPLES} cannot be read ({reason}); get it again") from None


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the columns `index`, `correct` and `log_prob` of each row of examples.parquet.

    Raises:
        UserError: the file cannot be read, or a column has a wrong type.
    """
    kinds = {"index": pyarrow.int64(), "correct": pyarrow.bool_(), "log_prob": pyarrow.float64()}
    table = read_table(path, list(kinds))
    missing = any(name not in table.column_names for name in kinds)
    if missing or any(table.schema.field(name).type != kind or table[name].null_count for name, kind in kinds.items()):
        raise UserError(f"{EXAMPLES} holds other values than a run writes; get it again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def without_texts(path: Path) -> bytes:
    """Return the bytes of examples.parquet without inputs, targets and generated texts."""
    table = read_table(path)
    kept = table.select([name for name in FIGURES if name in table.column_names]).replace_schema_metadata(None)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(kept, sink)
    return sink.getvalue()
