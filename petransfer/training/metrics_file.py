"""Write and read metrics.jsonl: one line of JSON per logged step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from petransfer.atomic_files import sync
from petransfer.errors import UserError, refuse_moved
from petransfer.unreadable_files import refuse_unreadable


class MetricsFile:
    """Writes metrics.jsonl line by line. When a run resumes, `cut` removes the lines after the last saved state."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            FolderMoved: the folder is no longer there.
        """
        refuse_moved(self.path.parent)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def size(self) -> int:
        """Make sure that the file is on the disk, and return its length in bytes."""
        if not self.path.exists():
            return 0
        sync(self.path)
        return self.path.stat().st_size

    def cut(self, length: int) -> None:
        """Shorten the file to its complete lines in the first `length` bytes. A shorter file loses only a partial line.

        The file is shorter if the user has removed a damaged line.
        """
        if self.path.exists():
            os.truncate(self.path, self.path.read_bytes()[:length].rfind(b"\n") + 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a metrics.jsonl file as dicts. Empty without a file.

    Raises:
        UserError: a line is damaged, or `path` is not a file.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise UserError(f"{path} is not a file; remove it, or restore the run's metrics.jsonl")
    refuse_unreadable(path)
    return [_parsed(line, f"{path}:{number}") for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1)]


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        content = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not _is_line(content):
        raise UserError(
            f"{place} is damaged: it is not a JSON object with the numbers of a step; remove the line or the file"
        )
    return {name: value for name, value in content.items() if value is not None}


def _is_line(content: dict[str, Any]) -> bool:
    needed = all(isinstance(content.get(name), int | float) for name in ("step", "loss", "seconds"))
    return needed and content["step"] >= 1 and all(isinstance(one, int | float | None) for one in content.values())
