"""Write rows into a file on disk, and read them one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from petransfer.data.task import Example

# The number of rows that are written and read together. It is small, so that reading one random row is fast.
ROWS_PER_BATCH = 64
_COLUMNS = ("index", "line", "input", "target", "category")


class RowWriter:
    """A context manager that writes rows into an Arrow file in small batches."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        kinds = (*[pyarrow.int64()] * 2, *[pyarrow.large_string()] * 3)
        self._schema = pyarrow.schema(list(zip(_COLUMNS, kinds, strict=True)))
        self._file = pyarrow.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, self._schema)
        self._pending: list[tuple[int, int, str, str, str]] = []

    def add(self, index: int, line: int, source: str, target: str, category: str) -> None:
        """Add a row. `index` is the example's number in its file, from 0; `line` is the row's first line, from 1."""
        self._pending.append((index, line, source, target, category))
        if len(self._pending) == ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        columns = [list(column) for column in zip(*self._pending, strict=True)]
        self._writer.write_batch(pyarrow.record_batch(columns, schema=self._schema))
        self._pending.clear()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending and error is None:
            self._flush()
        self._writer.close()
        self._file.close()


class StoredRows(Sequence[Example]):
    """The rows of one part in a file on disk."""

    def __init__(
        self, path: Path, positions: Any, chat: str = "", change: Callable[[Example], Example] | None = None
    ) -> None:
        """Open the Arrow file. `positions` is a numpy array with the part's rows, counted from 0.

        `change` is applied to each example when it is read.
        """
        import pyarrow

        # the file is not memory-mapped, because mapped pages that were read would count as memory of the process
        self._reader = pyarrow.ipc.open_file(pyarrow.OSFile(str(path), "rb"))
        self._path, self._positions, self._chat, self._change = path, positions, chat, change
        self._held: tuple[int, list[list[Any]]] | None = None

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, at: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(at, slice):
            return tuple(self[one] for one in range(*at.indices(len(self))))
        index, _, source, target, category = self._row(at)
        example = Example(index, source, target, category, self._chat)
        return self._change(example) if self._change else example

    def number(self, at: int) -> int:
        """Return the number of a row among the rows of all parts, counted from 0."""
        return int(self._positions[at])

    def line_of(self, index: int) -> int | None:
        """Return the line of the row with this index. None if there is no such row."""
        found = (row for at in range(len(self)) if (row := self._row(at))[0] == index)
        return next((int(row[1]) for row in found), None)

    def without(self, positions: Sequence[int]) -> StoredRows:
        """Return a copy without the rows at these positions."""
        import numpy as np

        kept = np.delete(self._positions, np.asarray(positions, dtype=np.int64))
        return StoredRows(self._path, kept, self._chat, self._change)

    def changed_by(self, change: Callable[[Example], Example]) -> StoredRows:
        """Return a copy that applies a function to each example when it is read."""
        return StoredRows(self._path, self._positions, self._chat, change)

    def _row(self, at: int) -> list[Any]:
        batch, offset = divmod(int(self._positions[at]), ROWS_PER_BATCH)
        if self._held is None or self._held[0] != batch:
            self._held = (batch, [column.to_pylist() for column in self._reader.get_batch(batch).columns])
        return [column[offset] for column in self._held[1]]
