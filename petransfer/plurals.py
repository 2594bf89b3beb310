"""Write numbers together with nouns in the singular or plural, and names as an enumeration."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
    """Return names as an enumeration. Empty without names.

    >>> listed(["layers", "rank", "targets"])
    'layers, rank and targets'
    """
    return " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])


def count(number: int, noun: str) -> str:
    """Return a number with a noun, in the singular if the number is 1.

    >>> count(1, "run"), count(1200, "run")
    ('1 run', '1,200 runs')
    >>> count(2, "process")
    '2 processes'
    """
    ending = "" if number == 1 else "es" if noun.endswith(("s", "ch", "x")) else "s"
    return f"{number:,} {noun}{ending}"
