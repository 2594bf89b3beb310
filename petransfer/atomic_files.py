"""Write files and folders under a temporary name, and rename them at the end."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


def partial_name(name: str) -> str:
    """Return the temporary name of a file or folder that is being written.

    >>> partial_name("recipe.yaml")
    '.recipe.yaml.partial'
    """
    return f".{name}.partial"


@contextlib.contextmanager
def replacing(path: Path, several: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, and rename it to `path` at the end.

    A file replaces an existing file, and a folder replaces an existing folder. After an error inside the context,
    `path` is unchanged and the temporary file or folder is removed.

    Args:
        several: Whether several processes can write `path` at the same time. Each process then has its own temporary
            path.

    Raises:
        IsADirectoryError: A file was written, and `path` is a folder.
    """
    partial = _own_partial(path) if several else path.with_name(partial_name(path.name))
    _remove(partial)
    try:
        with named_errors(path):
            yield partial
            if partial.is_file():
                sync(partial)
        if partial.is_file():
            _refuse_folder(path)
            partial.replace(path)
        else:
            replace_folder(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(partial)
        raise


@contextlib.contextmanager
def creating(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a new folder, and rename it to `path` at the end.

    Several processes can create the same folder at the same time. Each process has its own temporary path, and the
    first process that finishes creates `path`. After an error inside the context, the temporary folder is removed.

    Raises:
        FileExistsError: `path` exists at the end.
    """
    partial = _own_partial(path)
    try:
        with named_errors(path):
            yield partial
        try:
            if os.path.lexists(path):
                raise FileExistsError
            partial.rename(path)  # fails if another process has created `path` with files in it
        except OSError as error:
            if not os.path.lexists(path):
                raise
            raise FileExistsError(errno.EEXIST, "another process created it at the same time", str(path)) from error
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(partial)
        raise


def replace_folder(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`, and remove the folder that was there.

    If the process is killed between the two renames, nothing is lost: the old folder still has its temporary name, and
    `recover_folders` renames it back.
    """
    aside = path.with_name(f".{path.name}{_ASIDE}")
    if path.is_dir():
        _remove(aside)  # left behind by a process that was killed after it had renamed its new folder
        path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        if aside.is_dir() and not os.path.lexists(path):
            aside.rename(path)
        raise
    with contextlib.suppress(OSError):
        _remove(aside)


def recover_folders(parent: Path) -> None:
    """Rename back the folders in `parent` whose replacement was interrupted by a kill; see `replace_folder`.

    Call this function only while no other process writes to `parent`.
    """
    for aside in parent.glob(f".*{_ASIDE}"):
        path = aside.with_name(aside.name.removeprefix(".").removesuffix(_ASIDE))
        with contextlib.suppress(OSError):
            _remove(aside) if os.path.lexists(path) else aside.rename(path)


# The end of the temporary name of a folder that is being replaced.
_ASIDE = ".replaced"


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing to `path` into OSError with the name of `path`.

    safetensors and tokenizers raise exceptions of their own classes. Their text ends with the error number, as in "No
    space left on device (os error 28)".
    """
    try:
        yield
    except OSError as error:
        # writing to an open file gives an error without a name, and copying gives the name of the file that is read
        if error.errno is None or (error.filename is not None and error.filename2 is None):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if not found:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def sync(path: Path) -> None:
    """Flush a file to the disk. For a folder, flush the list of its files. No effect on Windows."""
    if sys.platform == "win32":  # Windows cannot open folders or flush files that are open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it. The path of a folder raises IsADirectoryError."""
    _refuse_folder(path)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _own_partial(path: Path) -> Path:
    """Return this process's temporary path for `path`. Remove temporary paths that killed processes left behind."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        number = stale.name.split(".")[-2]
        if number.isdigit() and (int(number) == os.getpid() or not psutil.pid_exists(int(number))):
            _remove(stale)
    return path.with_name(partial_name(f"{path.name}.{os.getpid()}"))
