"""The table at the top of a report: the verdict of every effect, by split and method."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from petransfer.effects.drawing import labels_of
from petransfer.effects.wording import bounds, signed
from petransfer.plurals import count, listed
from petransfer.recipe.effect_requests import short_label


@dataclass(frozen=True)
class Claim:
    """A table cell: the verdict of an effect, and its difference and interval as text."""

    verdict: str
    points: str


@dataclass(frozen=True)
class HeadlineRow:
    """A table row, or a heading. `cells`: one per column. None stands for an effect that the study lacks."""

    name: str = ""
    cells: tuple[Claim | None, ...] = ()
    heading: str = ""


@dataclass(frozen=True)
class Headline:
    """The table at the top of a report. `counted`: a text with the number of effects for each verdict."""

    counted: str
    columns: tuple[str, ...]
    rows: tuple[HeadlineRow, ...] = field(default_factory=tuple)


def headline(effects: dict[str, Any]) -> Headline | None:
    """Make the table of verdicts. None if there are no effects. `effects`: content of effects.json."""
    found = effects["effects"]
    if not found:
        return None
    places = list(dict.fromkeys(_place(one) for one in found))
    labels = labels_of(found)
    names = list(dict.fromkeys(labels))
    methods = {one["method"] for one in found if one["method"]}
    short = {place: short_label(place, methods) if place in methods else place for place in places}
    # Rows are effects and columns are methods. With at least three methods and more methods than effects, rows are
    # methods.
    across = len(places) <= max(2, len(names))
    splits = list(dict.fromkeys(one["split"] for one in found))
    rows: list[HeadlineRow] = []
    for split in splits:
        if len(splits) > 1:
            rows.append(HeadlineRow(heading=split))
        labelled = zip(labels, found, strict=True)
        cells = {(label, _place(one)): _claim(one) for label, one in labelled if one["split"] == split}
        for row in names if across else places:
            if across:
                line = [cells.get((row, place)) for place in places]
            else:
                line = [cells.get((name, row)) for name in names]
            if any(line):
                rows.append(HeadlineRow(row if across else short[row], tuple(line)))
    columns = tuple(short[place] for place in places) if across else tuple(names)
    return Headline(counted(effects), columns, tuple(rows))


def _place(effect: dict[str, Any]) -> str:
    return str(effect["arm"] or effect["method"])


def _claim(effect: dict[str, Any]) -> Claim:
    return Claim(effect["verdict"], f"{signed(effect['difference'])}{bounds(effect['interval'])}")


def counted(effects: dict[str, Any]) -> str:
    """Return a text with the number of effects for each verdict and the number of tests."""
    found = Counter(one["verdict"] for one in effects["effects"])
    parts = [f"{count} {verdict}" for verdict, count in found.most_common()]
    parts += [f"{len(effects['missing'])} not estimated"] if effects.get("missing") else []
    tests = effects.get("families") or {"": effects.get("tests", 0)}
    if len(tests) > 1:
        sizes = listed([str(size) for size in tests.values()])
        together = f" Families of {sizes} were tested; p values are adjusted (Holm) within each family."
    else:
        size = next(iter(tests.values()))
        together = f" {size} were tested together; their p values are adjusted (Holm)." if size > 1 else ""
    total = len(effects["effects"])
    return f"{count(total, 'effect')}: {', '.join(parts)}.{together}"
