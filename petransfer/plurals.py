"""Write numbers together with nouns in the singular or plural."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Return a number with a noun, in the singular if the number is 1.

    >>> count(1, "run"), count(1200, "run")
    ('1 run', '1,200 runs')
    >>> count(2, "process")
    '2 processes'
    """
    ending = "" if number == 1 else "es" if noun.endswith(("s", "ch", "x")) else "s"
    return f"{number:,} {noun}{ending}"
