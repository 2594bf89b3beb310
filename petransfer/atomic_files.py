"""Write files and folders under a temporary name, and rename them at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def partial_name(name: str) -> str:
    """Return the temporary name of a file or folder that is being written.

    >>> partial_name("recipe.yaml")
    '.recipe.yaml.partial'
    """
    return f".{name}.partial"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, and rename it to `path` at the end.

    An existing file or folder at `path` is replaced. After an error inside the context, `path` is unchanged and the
    temporary file or folder is removed.
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
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
