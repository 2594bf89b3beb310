"""Find names, such as labels and categories, that look the same or differ only in case or blanks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from petransfer.data.bad_rows import visible
from petransfer.data.rows.records import normalised_name
from petransfer.plurals import count


def normalised_label(name: str) -> str:
    """Return a whole number without its `.0`, and for any other text the result of `normalised_name`."""
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else normalised_name(name)


def alike_names(counts: Mapping[str, int], key: Callable[[str], str] = normalised_name) -> list[list[str]]:
    """Return the groups of names with the same key. Default: they look the same, or differ only in case or blanks."""
    groups: dict[str, list[str]] = {}
    for name in sorted(counts):
        groups.setdefault(key(name), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def shown_apart(names: Sequence[str], counts: Mapping[str, int]) -> str:
    """Return the names with their numbers of rows. Names that look the same are shown with escapes."""
    shown = [visible(name) for name in names]
    if len({unicodedata.normalize("NFKC", text) for text in shown}) < len(names):
        shown = [visible(name).encode("ascii", "backslashreplace").decode() for name in names]
    rows = [count(counts[name], "row") for name in names]
    return " and ".join(f"{text} ({number})" for text, number in zip(shown, rows, strict=True))


def difference_of(names: Sequence[str]) -> str:
    """Return, as text, how the names of a group from `alike_names` differ."""
    if len({normalised_name(name) for name in names}) > 1:
        return "are the same number"
    if len({" ".join(name.split()).casefold() for name in names}) == 1:
        return "differ only in case or blanks"
    return "look alike, and differ in invisible characters or in how characters are encoded"
