"""Count the rows of a table that have fewer cells than its header."""

from __future__ import annotations

from petransfer.data.rows.records import Record
from petransfer.plurals import count


class ShortRows:
    """The number of short rows of one source, and a warning about the first one."""

    def __init__(self) -> None:
        self._rows, self._first = 0, ""

    def add(self, record: Record, name: str) -> None:
        """Count a row if it has fewer cells than the header. `name` is the name of its source."""
        if record.left_out:
            self._rows += 1
            missing = ", ".join(map(repr, record.left_out))
            self._first = self._first or f"{record.place(name)} has no cell for {missing}"

    def notes(self, name: str) -> list[str]:
        """Return the warning about the short rows of the source. Empty without such a row."""
        if not self._rows:
            return []
        return [
            f"warning: {name}: {count(self._rows, 'row')} with fewer cells than the header; the missing cells are "
            f"read as empty ({self._first}, for example)"
        ]
