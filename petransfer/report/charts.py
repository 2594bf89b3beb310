"""Pictures of effects: the forest plot, what a method keeps, parameters against effect, categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from petransfer.effects.drawing import draw_interval
from petransfer.effects.palette import INK, MARKERS, RULE, SERIES, colours
from petransfer.recipe.effect_requests import short_label
from petransfer.report.plots import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.4
_ROW = 0.3


@dataclass(frozen=True)
class Trained:
    """An effect under a method that trains so many parameters."""

    name: str
    split: str
    method: str
    parameters: int
    effect: dict[str, Any]


def parameters_and_effect(points: Sequence[Trained], word: str) -> Figure:
    """Methods from the fewest trained parameters to the most: how many (logarithmic), and each effect beside it.

    A colour and a shape for each effect; a dot for each number, where arms train different ones. word: as in `forest`.
    """
    from matplotlib.ticker import NullFormatter

    counts: dict[str, list[int]] = {}
    for one in points:
        counts.setdefault(one.method, []).append(one.parameters)
    rows = sorted(counts, key=lambda method: (fmean(counts[method]), method))
    names = list(dict.fromkeys((point.name, point.split) for point in points))
    found = colours([f"{name}, {split}" for name, split in names])
    height = max(_ROW, 0.14 * len(names))
    figure, (left, right) = grid(2, size=(WIDTH, 1.2 + height * len(rows)), sharey=True, width_ratios=(1, 2))
    left.hlines(range(len(rows)), 0, 1, transform=left.get_yaxis_transform(), color=RULE, linewidth=0.8, zorder=0)
    for row, method in enumerate(rows):
        left.plot(counts[method], [row] * len(counts[method]), "o", color=INK, markersize=4)
    for at, (name, split) in enumerate(names):
        colour, marker = found[f"{name}, {split}"], MARKERS[(at + at // len(SERIES)) % len(MARKERS)]
        for one in points:
            if (one.name, one.split) == (name, split):
                place = rows.index(one.method) + 0.7 * ((at + 0.5) / len(names) - 0.5)
                draw_interval(right, one.effect, place, colour, marker, hollow=False)
        right.plot([], [], color=colour, marker=marker, label=f"{name}, {split}")
    right.axvline(0, color=INK, linewidth=0.8)
    left.set_yticks(range(len(rows)), [short_label(method, rows) for method in rows])
    decades = [math.log10(count) for one in counts.values() for count in one]
    ends = 10.0 ** math.floor(min(decades)), 10.0 ** math.ceil(max(decades))
    left.set(xscale="log", xlabel="trained parameters", xlim=ends, ylim=(len(rows) - 0.4, -0.6))
    left.xaxis.set_minor_formatter(NullFormatter())
    right.set(xlabel=f"points of test {word}")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


@dataclass(frozen=True)
class Heat:
    """Percent EM by category (rows) and by group (columns); None where a cell has no run. split: of all columns.

    paper: what Orhan (2021) has for each cell. family: the paper's that it is of, empty where it has none of them.
    """

    split: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    paper: tuple[tuple[float | None, ...], ...]
    family: str


def heat_map(heats: Sequence[Heat]) -> Figure:
    """A panel a split: light is 0 %, dark is 100 %; the figure stands in every cell, the paper's beneath it."""
    from matplotlib.colors import LinearSegmentedColormap

    heights = [len(heat.rows) * (1.4 if heat.family else 1) for heat in heats]
    slanted = 0.05 * max(len(name) for heat in heats for name in heat.columns)  # inches that names of columns take
    size = (2.6 + 0.75 * max(len(heat.columns) for heat in heats), (1 + slanted) * len(heats) + 0.26 * sum(heights))
    figure, panels = grid(1, rows=len(heats), size=size, height_ratios=heights)
    shades = LinearSegmentedColormap.from_list("em", ["#F2F6FA", "#0072B2"])
    for heat, axes in zip(heats, panels, strict=True):
        shown = [[math.nan if value is None else value for value in line] for line in heat.values]
        axes.pcolormesh(shown, cmap=shades, vmin=0, vmax=100, edgecolors="white", linewidth=1)
        for row, line in enumerate(heat.values):
            for column, value in enumerate(line):
                if value is not None:
                    _figures(axes, column + 0.5, row + 0.5, value, heat.paper[row][column])
        axes.set_xticks([at + 0.5 for at in range(len(heat.columns))], heat.columns, rotation=35, ha="right")
        axes.set_yticks([at + 0.5 for at in range(len(heat.rows))], heat.rows)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_title(f"{heat.split} (in small type: the paper, {heat.family})" if heat.family else heat.split)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _figures(axes: Axes, x: float, y: float, value: float, paper: float | None) -> None:
    """Ours in the middle of a cell, or above the paper's."""
    ink = "white" if value > 55 else "black"
    at: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    axes.text(x, y - (0 if paper is None else 0.17), f"{value:.0f}", fontsize=8, **at)
    if paper is not None:
        axes.text(x, y + 0.24, f"{paper:.0f}", fontsize=6, **at)
