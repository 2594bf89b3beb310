"""Divide a grid into shards, one for each job of a job array. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.study.folders import CellType


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` parts of a grid, counted from 1."""

    index: int
    count: int

    def of(self, cells: Sequence[CellType]) -> list[CellType]:
        """Return the runs of this shard, in the order of `cells`."""
        # sorted run ids give every job the same division, without communication
        own = set(sorted(cell.run_id for cell in cells)[self.index - 1 :: self.count])
        return [cell for cell in cells if cell.run_id in own]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Return the shard of a text such as `2/8`. Raises UserError for other texts."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match:
        raise UserError(f"--shard {text}: write two whole numbers such as 2/8, the second of eight parts")
    index, count = int(match[1]), int(match[2])
    if not 1 <= index <= count:
        raise UserError(
            f"--shard {text}: the first number must be at least 1 and at most the second; write 1/{max(count, 1)}"
        )
    return Shard(index, count)
