"""Read the arguments of the command line as UTF-8, and write texts that the output's encoding lacks."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence

from petransfer.errors import UserError, shortened
from petransfer.plurals import count

# characters that the encoding of stdout lacks and that were written as ?
_lost: list[str] = []


def write_any_text() -> None:
    """Make stdout and stderr write `?` for each character that their encoding lacks.

    On Windows, files and pipes get UTF-8, unless the user chose another encoding.
    """
    _lost.clear()
    for name in ("stdout", "stderr"):
        codecs.register_error(f"petransfer_{name}", _for_stdout if name == "stdout" else _replaced)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            is_free = sys.platform == "win32" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(encoding="utf-8" if is_free else None, errors=f"petransfer_{name}")


def lost_characters_note() -> list[str]:
    """Return a note about the characters that stdout could not write. Empty if there are none."""
    if not _lost:
        return []
    are, them = ("it is", "it") if len(_lost) == 1 else ("they are", "them")
    return [
        f"the output's encoding, {sys.stdout.encoding}, cannot represent {count(len(_lost), 'character')}; {are} "
        f"printed as ?. Set PYTHONIOENCODING=utf-8 to print {them}"
    ]


def _for_stdout(error: UnicodeError) -> tuple[str, int]:
    found = _replaced(error)
    _lost.extend("?" * found[0].count("?"))
    return found


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].replace("\u2212", "-")
    return text.encode("ascii", "replace").decode(), error.end


def start_again_in_utf8() -> None:
    """Restart Python in UTF-8 mode if it decodes file names as ASCII, as with LC_ALL=C.

    Without the restart, files with other than ASCII letters in their names could not be opened.
    """
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode:
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def utf8_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with their bytes decoded as UTF-8.

    Raises:
        UserError: an argument is not UTF-8. Neither a recipe nor JSON could contain it.
    """
    found = []
    for number, argument in enumerate(arguments, start=1):
        try:
            found.append(argument.encode("utf-8", "surrogateescape").decode("utf-8"))
        except UnicodeError:
            start = next(at for at, sign in enumerate(argument, start=1) if "\ud800" <= sign <= "\udfff")
            shown = shortened(argument.encode("utf-8", "replace").decode(), 80)
            raise UserError(
                f"argument {number} ({shown}) is not UTF-8 at character {start}; write texts in UTF-8, and rename files"
            ) from None
    return found
