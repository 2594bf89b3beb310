"""Divide a grid into shards for job arrays: each job computes its own shard independently. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.study.folders import CellType


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, counted from 1."""

    index: int
    count: int

    def of(self, cells: Sequence[CellType]) -> list[CellType]:
        """Return the cells of this shard, in the order of `cells`.

        The sorted run ids are assigned to the shards in turn. The sizes of the shards therefore differ by at most one.
        """
        dealt = set(sorted(cell.run_id for cell in cells)[self.index - 1 :: self.count])
        return [cell for cell in cells if cell.run_id in dealt]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Return the shard that a text such as `2/8` describes.

    Raises:
        UserError: The text does not describe a shard.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match:
        raise UserError(f"--shard {text}: write two whole numbers such as 2/8, the second of eight parts")
    index, count = int(match[1]), int(match[2])
    if not 1 <= index <= count:
        raise UserError(f"--shard {text}: parts are counted from 1 to how many there are; write 1/{max(count, 1)}")
    return Shard(index, count)
