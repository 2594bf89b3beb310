"""Write files and folders whole or not at all: into a temporary neighbour, which is renamed when it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def partial_name(name: str) -> str:
    """Return the name of the temporary neighbour of a file or folder.

    >>> partial_name("recipe.yaml")
    '.recipe.yaml.partial'
    """
    return f".{name}.partial"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write a file or folder to, and rename it to `path` at the end.

    What stood at `path` is replaced; a folder is removed first. After an error nothing is changed.
    """
    partial = path.with_name(partial_name(path.name))
    _remove(partial)
    try:
        yield partial
        if partial.is_file():
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
