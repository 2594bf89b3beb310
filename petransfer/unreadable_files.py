"""Detect files that are not damaged but cannot be read: missing permissions, disk errors and Git LFS pointers."""

from __future__ import annotations

import errno
from pathlib import Path

from petransfer.errors import UserError

# The first bytes of a Git LFS pointer: a short text in place of a file that was not downloaded.
_POINTER = b"version https://git-lfs"
# Errors for a path where there is no file. The function that reads the file reports them.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG)


def refuse_unreadable(path: Path, name: str = "") -> None:
    """Raise UserError if a file cannot be read, or is a Git LFS pointer. No effect if the file does not exist.

    Args:
        name: Name for the message about a pointer. Empty: the path.
    """
    try:
        if not path.is_file():  # opening a named pipe would wait
            return
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    except OSError as error:
        if error.errno in _NO_FILE:
            return
        raise unreadable(path, error) from None
    except ValueError:  # a name with a NUL character
        return
    if head == _POINTER:
        raise UserError(
            f"{name or path} is a Git LFS pointer, not the file itself; download the file with `git lfs pull`"
        )


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error for a file or folder that exists but cannot be read."""
    denied = isinstance(error, PermissionError)
    advice = "change its permissions or those of its folder" if denied else "try again, or check the disk"
    return UserError(f"{path} cannot be read ({error.strerror or error}); {advice}")
