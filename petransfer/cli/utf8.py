"""Read the arguments of the command line as UTF-8, whatever the locale is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from petransfer.errors import UserError, shortened


def start_again_in_utf8() -> None:
    """Replace this process by one in Python's UTF-8 mode, if file names are ASCII here, as with LC_ALL=C.

    Otherwise, no file with another letter in its name can be opened.
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
