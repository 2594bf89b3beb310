"""Recognise pointers of Git LFS: short texts that stand in for files that were not downloaded."""

from __future__ import annotations

from pathlib import Path

from petransfer.errors import UserError

_POINTER = b"version https://git-lfs"


def refuse_pointer(path: Path, name: str = "") -> None:
    """Raise UserError if a file is a pointer of Git LFS.

    Args:
        name: Name for the message. Empty: the path.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    except OSError:  # the function that reads the file reports this error
        return
    if head == _POINTER:
        raise UserError(
            f"{name or path} is a Git LFS pointer, not the file itself; download the file with `git lfs pull`"
        )
