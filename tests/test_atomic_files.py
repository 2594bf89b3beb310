"""Test writing files and folders under a temporary name."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import petransfer.atomic_files
from petransfer.atomic_files import creating, replacing, sync, write_text


def test_the_first_writer_to_finish_creates_the_folder_and_the_other_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "merged"

    def write(number: int) -> None:
        monkeypatch.setattr(petransfer.atomic_files.os, "getpid", lambda: number)
        with creating(target) as partial:
            partial.mkdir()
            (partial / "weights").write_text(str(number))
            if number == 1:
                write(2)

    monkeypatch.setattr(psutil, "pid_exists", lambda number: True)
    with pytest.raises(FileExistsError, match="another process created it at the same time"):
        write(1)
    assert (target / "weights").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_partial_folders_of_killed_writers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".merged.77.partial").mkdir()
    (tmp_path / ".merged.78.partial").mkdir()
    monkeypatch.setattr(psutil, "pid_exists", lambda number: number == 78)
    with creating(tmp_path / "merged") as partial:
        partial.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".merged.78.partial", "merged"]


@pytest.mark.parametrize("write", [creating, replacing])
def test_a_library_error_about_the_disk_becomes_an_os_error(tmp_path: Path, write: object) -> None:
    class SafetensorError(Exception):
        pass

    def fill() -> None:
        with write(tmp_path / "merged") as partial:  # type: ignore[operator]
            partial.mkdir()
            raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")

    with pytest.raises(OSError, match="File too large") as raised:
        fill()
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "merged"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [creating, replacing])
def test_a_write_error_names_the_target_and_a_read_error_names_the_source(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # raised by a write to an open file
    copied = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "source", None, "target")
    unread = OSError(errno.EIO, os.strerror(errno.EIO), "source")
    for error, name in ((full, tmp_path / "merged"), (copied, tmp_path / "merged"), (unread, "source")):
        with pytest.raises(OSError) as raised, write(tmp_path / "merged"):  # noqa: PT011 - compared below
            raise error
        assert (raised.value.errno, raised.value.filename) == (error.errno, str(name))
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(full))
    with pytest.raises(OSError) as raised:  # noqa: PT011
        write_text(tmp_path / "table.csv", "a")
    assert raised.value.filename == str(tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["folder", ".", "folder/.."])
def test_a_file_never_replaces_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("x")
    with pytest.raises(IsADirectoryError):
        write_text(Path(name), "text")
    if name == "folder":
        with pytest.raises(IsADirectoryError), replacing(Path(name)) as partial:
            partial.write_text("text")
    assert (tmp_path / "folder" / "kept").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_on_windows_nothing_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, a file that is open for reading cannot be synced, and a folder cannot be opened."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        patch.setattr(os, "fsync", lambda file: pytest.fail("synced"))
        write_text(tmp_path / "a.txt", "a")
        sync(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "a"
