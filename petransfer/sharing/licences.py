"""Under which licence an adapter may be shared: what its base and its data allow together."""

from __future__ import annotations

# The hub's names, from the freest to the most binding: of two the later one binds what is made of both.
ORDER = (
    "cc0-1.0", "unlicense", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0",
    "gpl-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
)  # fmt: skip
# These ask that what is made of them be under the very same licence, so that two of them do not go together.
SAME = frozenset({"cc-by-sa-4.0", "gpl-3.0", "cc-by-nc-sa-4.0"})
# What the registry's cards call them.
NAMES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "BigCode OpenRAIL-M v1": "bigcode-openrail-m"}


def derived(base: str | None, data: str | None) -> str | None:
    """The licence of what is made of a base and data under these licences; None where that is not known.

    >>> derived("apache-2.0", "mit")
    'apache-2.0'
    >>> derived("apache-2.0", "cc-by-nc-4.0")
    'cc-by-nc-4.0'
    """
    if base is None or data is None:
        return None
    if base == data:
        return base
    if base not in ORDER or data not in ORDER:
        return None
    if base in SAME and data in SAME:
        return None
    lower, upper = sorted((base, data), key=ORDER.index)
    return None if lower in SAME else upper
