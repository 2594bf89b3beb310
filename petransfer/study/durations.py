"""Durations as text, for progress lines and tables."""

from __future__ import annotations


def remaining_time(seconds: float | None, can_end_earlier: bool = False) -> str:
    """Return the remaining time as text, such as `20 s left`. None gives an empty text.

    >>> remaining_time(20.4), remaining_time(130), remaining_time(7200)
    ('20 s left', '2 min left', '2.0 h left')
    >>> remaining_time(130, can_end_earlier=True)
    'at most 2 min left'
    """
    if seconds is None:
        return ""
    if seconds < 90:
        text = f"{seconds:.0f} s"
    else:
        text = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{'at most ' if can_end_earlier else ''}{text} left"


def rough_duration(seconds: float) -> str:
    """Return an estimated duration as text, in its largest unit.

    >>> rough_duration(75), rough_duration(276), rough_duration(30_000), rough_duration(900_000)
    ('75 s', '5 min', '8 h', '10 days')
    """
    for limit, size, unit in ((90, 1, "s"), (5_400, 60, "min"), (129_600, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def duration(seconds: float) -> str:
    """Return a duration as text, such as `4 s`.

    >>> duration(4.2), duration(75), duration(4000)
    ('4 s', '1 min 15 s', '1 h 6 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
