"""Derive an adapter's licence from the licences of its base and data."""

from __future__ import annotations

# The hub's names of licences, from the most to the least permissive. A work that is made from two sources gets the less
# permissive of their licences.
ORDER = (
    "cc0-1.0", "unlicense", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0",
    "gpl-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
)  # fmt: skip
# Licences that require derived works to have the same licence. If base and data have two different ones of these
# licences, they cannot be combined.
SAME = frozenset({"cc-by-sa-4.0", "gpl-3.0", "cc-by-nc-sa-4.0"})
# The hub's names for licence names in the registry of checkpoints.
NAMES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "BigCode OpenRAIL-M v1": "bigcode-openrail-m"}


def derived_licence(base: str | None, data: str | None) -> str | None:
    """Return the licence of an adapter, given the licences of its base and data. None if unknown.

    >>> derived_licence("apache-2.0", "mit")
    'apache-2.0'
    >>> derived_licence("apache-2.0", "cc-by-nc-4.0")
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
