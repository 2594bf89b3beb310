"""A plot of effects against the number of trained parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from petransfer.effects.drawing import SMALL, TWO_COLUMNS, difference_in, draw_interval, label_of, new_figure
from petransfer.effects.palette import INK, MARKERS, RULE, SERIES, colours
from petransfer.recipe.effect_requests import short_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 0.26


@dataclass(frozen=True)
class EffectPoint:
    """An effect under one method. `parameters`: number of trained parameters. `effect`: entry of effects.json."""

    name: str
    split: str
    method: str
    parameters: int
    effect: dict[str, Any]


def parameters_and_effect(points: Sequence[EffectPoint], word: str, width: float = TWO_COLUMNS) -> Figure:
    """Draw a row for each method: the number of trained parameters, and the effects under the method.

    `word`: name of the metric. `width`: figure width in inches.
    """
    from matplotlib.ticker import NullFormatter

    counts: dict[str, list[int]] = {}
    for one in points:
        counts.setdefault(one.method, []).append(one.parameters)
    rows = sorted(counts, key=lambda method: (fmean(counts[method]), method))
    names = list(dict.fromkeys((label_of(point.effect), point.split) for point in points))
    splits = {split for _, split in names}
    labels = {pair: f"{pair[0]}, {pair[1]}" if len(splits) > 1 else pair[0] for pair in names}
    found = colours(list(labels.values()))
    height = max(_ROW, 0.14 * len(names))
    columns = 3 if width > 5 else 2
    figure, (left, right) = new_figure(
        2,
        size=(width, 0.7 + 0.2 * math.ceil(len(names) / columns) + height * len(rows)),
        sharey=True,
        width_ratios=(1, 2),
    )
    left.hlines(range(len(rows)), 0, 1, transform=left.get_yaxis_transform(), color=RULE, linewidth=0.8, zorder=0)
    for row, method in enumerate(rows):
        left.plot(counts[method], [row] * len(counts[method]), "o", color=INK, markersize=4)
    for at, (name, split) in enumerate(names):
        colour, marker = found[labels[name, split]], MARKERS[(at + at // len(SERIES)) % len(MARKERS)]
        for one in points:
            if (label_of(one.effect), one.split) == (name, split):
                place = rows.index(one.method) + 0.7 * ((at + 0.5) / len(names) - 0.5)
                draw_interval(right, one.effect, place, colour, marker, hollow=False)
        right.plot([], [], color=colour, marker=marker, label=labels[name, split])
    right.axvline(0, color=INK, linewidth=0.8)
    left.set_yticks(range(len(rows)), [short_label(method, rows) for method in rows])
    decades = [math.log10(count) for one in counts.values() for count in one]
    ends = 10.0 ** math.floor(min(decades)), 10.0 ** math.ceil(max(decades))
    left.set(xscale="log", xlabel="trained parameters", xlim=ends, ylim=(len(rows) - 0.4, -0.6))
    left.xaxis.set_minor_formatter(NullFormatter())
    right.set_xlabel(difference_in(word, width))
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL)
    return figure
