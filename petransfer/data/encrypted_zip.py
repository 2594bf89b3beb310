"""Read a file from a password-protected zip archive in memory, without writing to disk."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path

from petransfer.data.benchmark_files import REPLACE, difference
from petransfer.errors import UserError, reason_of


def open_member(path: Path, member: str, sha256: str, password: str, origin: str) -> list[bytes]:
    """Return the lines of one file in a password-protected zip archive.

    Args:
        sha256: Expected hash of the archive.
        origin: Where the password comes from, for the error message, such as `$PETRANSFER_SLOG_PASSWORD`.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from None
    found = hashlib.sha256(packed).hexdigest()
    if found != sha256:
        raise UserError(f"{path} is not the published file: {difference(found, sha256)}; {REPLACE}")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        try:
            return list(io.BytesIO(archive.read(member, pwd=password.encode())))
        # zip's password check accepts one of 256 wrong passwords; the error then comes later, while unpacking
        except (RuntimeError, zipfile.BadZipFile, zlib.error):
            raise UserError(
                f"the password in {origin} does not open {path}; the README of the file's repository has the password"
            ) from None
