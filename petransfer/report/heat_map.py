"""Exact match by category, for each arm and method, as data and as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from petransfer.effects.drawing import ONE_COLUMN, SMALL, TWO_COLUMNS, new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heat:
    """Exact match in percent on a split, with a row for each category and a column for each arm and method.

    Attributes:
        values: our exact match. None if there is no score.
        paper: exact match in Orhan (2021). None if there is no score.
        family: the paper's family, or ''.
    """

    split: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    paper: tuple[tuple[float | None, ...], ...]
    family: str

    def upright(self) -> Heat:
        """Return the heat map with at least as many rows as columns. Rows and columns are exchanged if necessary."""
        if len(self.columns) <= len(self.rows):
            return self
        values, paper = (tuple(zip(*part, strict=True)) for part in (self.values, self.paper))
        return replace(self, rows=self.columns, columns=self.rows, values=values, paper=paper)


def heat_map(heats: Sequence[Heat]) -> Figure:
    """Draw a heat map with a panel for each split. Light is 0 %, dark is 100 %."""
    from matplotlib.colors import LinearSegmentedColormap

    heats = [heat.upright() for heat in heats]
    heights = [len(heat.rows) * (1.4 if heat.family else 1) for heat in heats]
    names = [[wrapped(name, ONE_COLUMN) for name in heat.columns] for heat in heats]
    slanted = 0.05 * max(len(line) for found in names for name in found for line in name.split("\n"))  # inches
    width = min(TWO_COLUMNS, 2.6 + 0.75 * max(len(heat.columns) for heat in heats))
    size = (width, (1 + slanted) * len(heats) + 0.26 * sum(heights))
    figure, panels = new_figure(1, len(heats), size=size, height_ratios=heights)
    shades = LinearSegmentedColormap.from_list("em", ["#F2F6FA", "#0072B2"])
    for heat, columns, axes in zip(heats, names, panels, strict=True):
        shown = [[math.nan if value is None else value for value in line] for line in heat.values]
        axes.pcolormesh(shown, cmap=shades, vmin=0, vmax=100, edgecolors="white", linewidth=1)
        for row, line in enumerate(heat.values):
            for column, value in enumerate(line):
                if value is not None:
                    _figures(axes, column + 0.5, row + 0.5, value, heat.paper[row][column])
        axes.set_xticks([at + 0.5 for at in range(len(columns))], columns, rotation=35, ha="right")
        axes.set_yticks([at + 0.5 for at in range(len(heat.rows))], heat.rows)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        title = f"{heat.split} (in small type: the paper, {heat.family})" if heat.family else heat.split
        axes.set_title(title, fontsize=SMALL + 1)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _figures(axes: Axes, x: float, y: float, value: float, paper: float | None) -> None:
    ink = "white" if value > 85 else "black"  # on medium blue, black text has a better contrast than white text
    at: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    axes.text(x, y - (0 if paper is None else 0.17), f"{value:.0f}", fontsize=8, **at)
    if paper is not None:
        axes.text(x, y + 0.24, f"{paper:.0f}", fontsize=6, **at)
