"""metrics.jsonl: one line of JSON per logged step. Resuming a run neither loses nor repeats a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """Writes metrics.jsonl line by line; `cut` removes the lines that were written after the last saved state."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def size(self) -> int:
        """Return the length of the file in bytes, after writing it to the disk."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def cut(self, length: int) -> None:
        """Shorten the file to `length` bytes."""
        if self.path.exists():
            os.truncate(self.path, length)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all complete lines; an incomplete last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]
