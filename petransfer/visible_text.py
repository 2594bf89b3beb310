"""Show control and other invisible characters as escapes, so that no text can change a terminal, a page or a plot."""

from __future__ import annotations

import re

# Joiners between letters of scripts that need them, such as Persian and Hindi, and between the parts of an emoji.
_JOINER = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d]")


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Replace characters that are not printable, except those in `keep`, by escapes.

    >>> visible("red\x1b[31m"), visible("\u202egnp.exe")
    ('red\\x1b[31m', '\\u202egnp.exe')
    """
    text = str(text)
    if text.isprintable():
        return text
    joined = {found.start() for found in _JOINER.finditer(text)}
    return "".join(
        sign if sign.isprintable() or sign in keep or at in joined else _escape(sign) for at, sign in enumerate(text)
    )


def _escape(sign: str) -> str:
    number = ord(sign)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
