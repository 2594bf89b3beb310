"""Durations as text, for progress lines and tables."""

from __future__ import annotations


def remaining(seconds: float | None) -> str:
    """Return the time that is left, in the unit that suits it.

    >>> remaining(20.4), remaining(130), remaining(7200)
    ('20 s left', '2 min left', '2.0 h left')
    """
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
