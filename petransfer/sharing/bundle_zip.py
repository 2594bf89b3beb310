"""Write a bundle's zip file with reproducible bytes, and unpack zip files from unknown sources safely."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from petransfer.atomic_files import replacing
from petransfer.errors import UserError, reason_of
from petransfer.sharing.bundle_files import LIMITS, MIB, wrong_name
from petransfer.unreadable_files import refuse_unreadable

SUFFIX = ".petransfer.zip"
# The largest allowed ratio of a member's size to its compressed size. For text it is usually about 10. A much larger
# ratio indicates a decompression bomb: a small file that fills the disk when it is unpacked.
RATIO = 100
_BLOCK = MIB
# Bytes of the header before each member, without the member's name.
_LOCAL_HEADER = 30
# Bytes of the record at the end of a zip file without comment.
_END = 22


def write_zip(path: Path, contents: Mapping[str, Path | bytes]) -> None:
    """Write a zip file atomically, from the path or bytes of each member. Equal contents give equal bytes."""
    with replacing(path, several=True) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(contents):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            content = contents[name]
            if isinstance(content, bytes):
                archive.writestr(info, content)
                continue
            info.file_size = content.stat().st_size
            with content.open("rb") as source, archive.open(info, "w") as target:
                while block := source.read(_BLOCK):
                    target.write(block)


def read_zip(path: Path, target: Path) -> list[str]:
    """Unpack a bundle into the empty folder `target`, and return the names of its files.

    All members are checked before the first one is written.

    Raises:
        UserError: the file is not a zip file, is damaged, or has a forbidden member.
    """
    refuse_unreadable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not archive.comment and len(members) != _recorded_members(path):
                raise UserError(f"{path} is damaged: its directory does not list all of its files; get it again")
            _check(path, archive, members)
            for member in members:
                _unpack(archive, member, target / member.filename)
            return [member.filename for member in members]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path} is not a bundle or is damaged ({reason_of(error, 120)}); get it again") from None


def _recorded_members(path: Path) -> int:
    """Return the number of members that the end of a zip file without comment records."""
    with path.open("rb") as file:
        file.seek(-_END, os.SEEK_END)
        return int.from_bytes(file.read(_END)[10:12], "little")


def _check(path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    if archive.comment:
        raise UserError(f"{path} is refused: it has a comment or other data after its central directory")
    seen: set[str] = set()
    for member in members:
        reason = wrong_name(member.orig_filename) or _wrong_kind(member) or _wrong_size(member)
        if reason:
            raise UserError(f"{path} is refused: {member.orig_filename[:80]!r} {reason}")
        if member.filename in seen:
            raise UserError(f"{path} is refused: it holds {member.filename} twice")
        seen.add(member.filename)
    _check_places(path, archive, members)


def _wrong_kind(member: zipfile.ZipInfo) -> str | None:
    mode = member.external_attr >> 16
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        return "is a link or another special file"
    if member.flag_bits & 0x1 or member.flag_bits & 0x40:
        return "is encrypted"
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return f"is compressed by method {member.compress_type}; only stored and deflated ones are read"
    return None


def _wrong_size(member: zipfile.ZipInfo) -> str | None:
    limit = LIMITS[member.filename]
    if member.file_size > limit:
        return f"would be {member.file_size:,} bytes; at most {limit:,} are read"
    if member.file_size > RATIO * max(member.compress_size, 1024):
        return f"would grow from {member.compress_size:,} to {member.file_size:,} bytes, like a decompression bomb"
    if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        return "has two different sizes, although it is not compressed"
    return None


def _check_places(path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    end = 0
    for member in sorted(members, key=lambda one: one.header_offset):
        if member.header_offset < end:
            raise UserError(f"{path} is refused: {member.filename} overlaps another member")
        if end == 0 and member.header_offset != 0:
            raise UserError(f"{path} is refused: it has data before its first member")
        end = member.header_offset + _LOCAL_HEADER + len(member.filename.encode()) + member.compress_size
    if end > archive.start_dir:
        raise UserError(f"{path} is refused: its last member runs into its directory")


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    written = 0
    with archive.open(member) as source, target.open("xb") as file:
        while block := source.read(_BLOCK):
            written += len(block)
            if written > member.file_size:
                raise UserError(f"{member.filename} is larger than its bundle says; get it again")
            file.write(block)
    if written != member.file_size:
        raise UserError(f"{member.filename} is shorter than its bundle says; get it again")
