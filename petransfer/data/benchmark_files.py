"""Find the files of a benchmark in the user's folder or in the cache, or download them, and check their sha256."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import secrets
import shlex
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from petransfer.errors import UserError, reason_of

BASE_URL = "https://raw.githubusercontent.com"
TIMEOUT_SECONDS = 30.0
REPLACE = "replace it, or delete it to have it downloaded"
_CHUNK_BYTES = 1 << 16

Row = TypeVar("Row")


@dataclass(frozen=True)
class PublishedFile:
    """One file of a public repository at one commit.

    Args:
        repository: `owner/name` on GitHub.
        commit: Hash of the commit, with all 40 digits.
        path: Path of the file in the repository.
        place: Path of the file below the user's data folder.
        sha256: Hash of the file's content. A text file is hashed unpacked and with `\\n` line ends.
    """

    repository: str
    commit: str
    path: str
    place: str
    sha256: str

    @property
    def url(self) -> str:
        return f"{BASE_URL}/{self.repository}/{self.commit}/{self.path}"


def cache_dir() -> Path:
    """Return the folder for downloads: `$PETRANSFER_CACHE`, or `~/.cache/petransfer`."""
    given = os.environ.get("PETRANSFER_CACHE")
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "petransfer"
    except RuntimeError:
        raise UserError(f"there is no home folder for the cache; {cache_advice()}") from None


def cache_advice() -> str:
    """Return the advice for an error message: how to use another folder as the cache."""
    try:
        folder = str(Path(tempfile.gettempdir()) / "petransfer-cache")
    except FileNotFoundError:
        return "set PETRANSFER_CACHE to a folder that can be written to"
    started = Path(sys.argv[0])
    program = [sys.executable, "-m", "petransfer"] if started.name == "__main__.py" else ["petransfer"]
    if "petransfer" not in (started.name, started.parent.name):  # a script or a notebook
        return f"set the environment variable PETRANSFER_CACHE to a folder that can be written to, such as {folder}"
    return f"use another folder: PETRANSFER_CACHE={shlex.quote(folder)} {shlex.join([*program, *sys.argv[1:]])}"


def refuse_missing_folder(data_dir: Path) -> None:
    """Raise UserError if `data_dir` is not a folder."""
    if not data_dir.is_dir():
        raise UserError(f"the data folder {data_dir} does not exist: correct or leave out --data-dir")


def find_file(data_dir: Path, names: Iterable[str]) -> Path | None:
    """Return the first existing file of `names` below `data_dir`, plain or as `.xz`. None if no file exists.

    Raises:
        UserError: `data_dir` is not a folder.
    """
    refuse_missing_folder(data_dir)
    for name in names:
        for path in (data_dir / name, data_dir / f"{name}.xz"):
            if path.is_file():
                return path
    return None


def find_or_download(source: PublishedFile, data_dir: Path | None, names: Iterable[str]) -> Path:
    """Return the path of a benchmark's file in `data_dir` or in the cache.

    A file that is in neither folder is downloaded into the cache.

    Args:
        names: Possible paths of the file below `data_dir`. The first existing path is used.

    Raises:
        UserError: `data_dir` is not a folder, the download failed, or the downloaded file is not the published one.
    """
    found = find_file(data_dir, names) if data_dir else None
    if found:
        return found
    # only a download is checked here; `read_rows` checks the sha256 of every file while it reads
    cached = cache_dir() / source.repository / source.commit / source.path
    if not cached.is_file():
        _download(source, cached, data_dir)
    return cached


def read_rows(path: Path, parse: Callable[[str], Row], sha256: str | None = None) -> Iterator[Row]:
    """Yield the rows of a text file, plain or `.xz`. Each line is one row.

    Args:
        parse: Function that converts a line (without line end) to a row. A wrong line raises ValueError.
        sha256: Expected hash of the unpacked file with `\\n` line ends. None: not checked.

    Raises:
        UserError: The file cannot be read or unpacked, a line is wrong (the message has its number), or the hash
            differs.
    """
    yield from rows_of(_raw_lines(path), path, parse, sha256)


def rows_of(
    lines: Iterable[bytes], path: Path, parse: Callable[[str], Row], sha256: str | None = None
) -> Iterator[Row]:
    """Yield the rows of lines in memory; see `read_rows`. `path` is for error messages."""
    digest = hashlib.sha256()
    for number, raw in enumerate(lines, start=1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        digest.update(line + b"\n")
        try:
            row = parse(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start}: save the file as UTF-8") from None
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        yield row
    if sha256 is not None and digest.hexdigest() != sha256:
        raise UserError(f"{path} is not the published file: {difference(digest.hexdigest(), sha256)}; {REPLACE}")


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb") as file:
            yield from file
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{path} cannot be unpacked ({reason_of(error)}): replace it, or delete it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from None


def _download(source: PublishedFile, target: Path, data_dir: Path | None) -> None:
    # `tempfile` is not used: only the owner can read its files, but several users can share a cache
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                received = _receive(source, file)
            if received != source.sha256:
                raise UserError(
                    f"{source.url} gave another file than the published one: {difference(received, source.sha256)}; "
                    f"{_by_hand(source, data_dir)}"
                )
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{source.place} is missing and cannot be downloaded ({reason_of(error)}): get {source.path} of "
            f"{source.repository} at commit {source.commit[:7]} from {source.url}, {_by_hand(source, data_dir)}"
        ) from None


def _receive(source: PublishedFile, file: IO[bytes]) -> str:
    """Download `source` into `file`, and return the sha256."""
    # imported here, because importing petransfer.data must stay fast
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    digest = hashlib.sha256()
    with urllib.request.urlopen(source.url, timeout=TIMEOUT_SECONDS) as response, bar:
        length = response.headers.get("Content-Length")
        task = bar.add_task(f"{source.repository} {source.path}", total=int(length) if length else None)
        count = 0
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            count += len(chunk)
            bar.update(task, completed=count)
    # reading in chunks raises no error if the connection breaks
    if length and count != int(length):
        raise ConnectionError(f"the connection broke after {count:,} of {int(length):,} bytes")
    return digest.hexdigest()


def _by_hand(source: PublishedFile, data_dir: Path | None) -> str:
    if data_dir:
        return f"save it as {data_dir / source.place} and try again"
    return f"save it as DIR/{source.place} and pass --data-dir DIR"


def difference(got: str, expected: str) -> str:
    """Return the beginnings of two hashes as text for an error message."""
    return f"its sha256 is {got[:12]}..., expected {expected[:12]}..."
