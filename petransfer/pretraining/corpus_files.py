"""Find the text files of a corpus. Imports no transformers."""

from __future__ import annotations

from pathlib import Path

from petransfer.errors import UserError


def text_file(folder: Path, name: str) -> Path:
    """Return the path of a text of a corpus, which can be compressed.

    Raises:
        UserError: The file does not exist.
    """
    found = [path for path in (folder / f"{name}.txt", folder / f"{name}.txt.xz") if path.is_file()]
    if not found:
        raise UserError(f"no {name}.txt or {name}.txt.xz in {folder}; name the folder of the corpora with --corpora")
    return found[0]
