"""Sizes of cards as people write them. Imports no torch."""

from __future__ import annotations

import re

from petransfer.errors import UserError


def card_bytes(text: str) -> int:
    """The bytes that `12GB`, `12 GiB` or `12` stand for; makers of cards call 2^30 bytes a GB.

    Raises:
        UserError: it is no size, or none that a card could have.
    """
    given = text or '""'
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(g|gb|gib|m|mb|mib)?\s*", text.lower())
    if not match:
        raise UserError(f"--card {given}: write a size such as 12GB")
    size = float(match[1]) * (2**20 if (match[2] or "g").startswith("m") else 2**30)
    if not 2**28 <= size <= 2**40:
        raise UserError(f"--card {text}: a card has between 256MB and 1024GB; write a size such as 12GB")
    return int(size)
