"""A plot of effects against the number of trained parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    counts: dict[str, list[int]] = {}
    for point in points:
        counts.setdefault(point.method, []).append(point.parameters)
    rows = sorted(counts, key=lambda method: (fmean(counts[method]), method))
    names = list(dict.fromkeys((label_of(point.effect), point.split) for point in points))
    height = max(_ROW, 0.14 * len(names))
    columns = 3 if width > 5 else 2
    figure, (left, right) = new_figure(
        2,
        size=(width, 0.7 + 0.2 * math.ceil(len(names) / columns) + height * len(rows)),
        sharey=True,
        width_ratios=(1, 2),
    )
    _draw_counts(left, counts, rows)
    _draw_effects(right, points, names, rows)
    right.set_xlabel(difference_in(word, width))
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL)
    return figure


def _draw_counts(axes: Any, counts: Mapping[str, Sequence[int]], rows: Sequence[str]) -> None:
    """Draw the numbers of trained parameters, on a logarithmic axis. `rows`: the methods from top to bottom."""
    from matplotlib.ticker import NullFormatter

    axes.hlines(range(len(rows)), 0, 1, transform=axes.get_yaxis_transform(), color=RULE, linewidth=0.8, zorder=0)
    for row, method in enumerate(rows):
        axes.plot(counts[method], [row] * len(counts[method]), "o", color=INK, markersize=4)
    axes.set_yticks(range(len(rows)), [short_label(method, rows) for method in rows])
    decades = [math.log10(count) for of_method in counts.values() for count in of_method]
    limits = 10.0 ** math.floor(min(decades)), 10.0 ** math.ceil(max(decades))
    axes.set(xscale="log", xlabel="trained parameters", xlim=limits, ylim=(len(rows) - 0.4, -0.6))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_effects(
    axes: Any, points: Sequence[EffectPoint], names: Sequence[tuple[str, str]], rows: Sequence[str]
) -> None:
    """Draw the effects with their intervals, each name and split in its own colour.

    Args:
        names: pairs of an effect's name and a split.
        rows: the methods from top to bottom.
    """
    splits = {split for _, split in names}
    labels = {pair: f"{pair[0]}, {pair[1]}" if len(splits) > 1 else pair[0] for pair in names}
    colour_of = colours(list(labels.values()))
    for number, pair in enumerate(names):
        colour, marker = colour_of[labels[pair]], MARKERS[(number + number // len(SERIES)) % len(MARKERS)]
        for point in points:
            if (label_of(point.effect), point.split) == pair:
                height = rows.index(point.method) + 0.7 * ((number + 0.5) / len(names) - 0.5)
                draw_interval(axes, point.effect, height, colour, marker, hollow=False)
        axes.plot([], [], color=colour, marker=marker, label=labels[pair])
    axes.axvline(0, color=INK, linewidth=0.8)
