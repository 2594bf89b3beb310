"""Paths as the user writes them, which may begin with `~`."""

from __future__ import annotations

from pathlib import Path

from petransfer.errors import UserError


def expanded(path: str | Path) -> Path:
    """Return a path in which a `~` or `~name` at the beginning is replaced by that user's home folder.

    Raises:
        UserError: there is no such user, or the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{path}: there is no home folder for {home}; write the whole path, from / on") from None
