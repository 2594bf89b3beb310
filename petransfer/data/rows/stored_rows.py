"""Rows kept in a file on the disk and read back one at a time, so that a data set need not fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from petransfer.data.task import Example

# Rows that are written and read together: few enough that one row at random costs little, enough to pack well.
ROWS_A_BATCH = 64
_COLUMNS = ("index", "input", "target", "category")


class RowWriter:
    """Writes rows into an Arrow file, a small batch at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        kinds = (pyarrow.int64(), *[pyarrow.large_string()] * 3)
        self._schema = pyarrow.schema(list(zip(_COLUMNS, kinds, strict=True)))
        self._file = pyarrow.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, self._schema)
        self._pending: list[tuple[int, str, str, str]] = []

    def add(self, index: int, source: str, target: str, category: str) -> None:
        """One row. index: where it stands among the rows of its own file."""
        self._pending.append((index, source, target, category))
        if len(self._pending) == ROWS_A_BATCH:
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


class Rows(Sequence[Example]):
    """The rows of one part, read from the file when they are asked for.

    Plain reads, not a memory map: pages of a map that were touched count as the process's memory.
    """

    def __init__(self, path: Path, positions: Any) -> None:
        """positions: where the part's rows stand in the file, an array of whole numbers."""
        import pyarrow

        self._reader = pyarrow.ipc.open_file(pyarrow.OSFile(str(path), "rb"))
        self._positions = positions
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
        batch, offset = divmod(int(self._positions[at]), ROWS_A_BATCH)
        if self._held is None or self._held[0] != batch:
            self._held = (batch, [column.to_pylist() for column in self._reader.get_batch(batch).columns])
        return Example(*(column[offset] for column in self._held[1]))
