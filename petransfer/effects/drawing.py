"""Plots of effects: forest plots, and plots of the share of an effect that an adapter retains."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from petransfer.effects.palette import FAINT, HOLLOW, INK, MUTED, RULE, VERDICTS
from petransfer.effects.wording import MINUS
from petransfer.recipe.effect_requests import short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Widths in inches of one column and of a full two-column page in a journal.
ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0
_ROW = 0.26
_WIDE = 5.0  # inches; a narrower figure is laid out for one column of a journal
SMALL = 8


def new_figure(columns: int, rows: int = 1, *, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with empty panels, and return the figure and its panels, row by row.

    Args:
        columns, rows: numbers of panels.
        size: width and height of the figure in inches.
        options: keyword arguments of matplotlib's `subplots`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": SMALL + 1, "axes.labelsize": SMALL + 1}):
        figure = Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=SMALL)
    return figure, axes


def label_of(effect: dict[str, Any]) -> str:
    """Return the label of an effect: its two arms or methods with a minus sign (U+2212) between them."""
    if effect.get("arm") or not effect.get("left_name"):
        return str(effect["name"]).replace(" - ", f" {MINUS} ")
    categories = f" ({effect['categories']})" if effect.get("categories") else ""
    return f"{effect['left_name']} {MINUS} {effect['right_name']}{categories}"


def additions_to(effects: Sequence[dict[str, Any]]) -> list[str]:
    """Return an addition to each effect's label that tells effects with equal labels apart, such as ` (not paired)`.

    The addition is '' for an effect whose label is enough.
    """
    alike: dict[str, list[dict[str, Any]]] = {}
    for effect in effects:
        alike.setdefault(label_of(effect), []).append(effect)
    return [_addition(effect, alike[label_of(effect)]) for effect in effects]


def _addition(effect: dict[str, Any], alike: Sequence[dict[str, Any]]) -> str:
    parts = []
    if len({one.get("paired") for one in alike}) > 1:
        parts.append("paired" if effect.get("paired") else "not paired")
    family = effect.get("family")
    if family and len({one.get("family") for one in alike if one.get("paired") == effect.get("paired")}) > 1:
        parts.append(f"family {family}")
    return f" ({', '.join(parts)})" if parts else ""


def labels_of(effects: Sequence[dict[str, Any]]) -> list[str]:
    """Return the label of each effect of a study, with the addition that tells effects with equal labels apart."""
    return [f"{label_of(one)}{addition}" for one, addition in zip(effects, additions_to(effects), strict=True)]


def difference_in(word: str, width: float) -> str:
    """Return the label of an axis that shows differences in the metric `word`. `width`: figure width in inches."""
    return f"difference in test{chr(10) if width < _WIDE else ' '}{word}, points"


def wrapped(label: str, width: float) -> str:
    """Break the label of a row into short lines. `width`: figure width in inches."""
    return textwrap.fill(label, 44 if width >= _WIDE else 24, break_long_words=False, break_on_hyphens=False)


def plot_forest(effects: Sequence[dict[str, Any]], word: str, width: float | None = None) -> Figure:
    """Draw a forest plot: one row per effect, with its difference and interval.

    Effects in Orhan (2021) are drawn as hollow diamonds.

    Args:
        effects: entries of effects.json.
        word: name of the metric.
        width: figure width in inches. Default: the width of a page.
    """
    from matplotlib.patches import Patch

    width = width or TWO_COLUMNS
    rows = _rows(effects)
    keys = _legend_entries(effects)
    columns = 2 if width < _WIDE else 4
    legend_rows = math.ceil((len(keys) + 1) / columns)
    labels = [row.label if row.is_heading else wrapped(row.label, width) for row in rows]
    lines = max((label.count("\n") for label in labels), default=0)
    height = 0.55 + 0.2 * legend_rows + 0.15 * (width < _WIDE) + (_ROW + 0.11 * lines) * len(rows)
    figure, (axes,) = new_figure(1, size=(width, height))
    for at, row in enumerate(rows):
        if row.is_heading:
            place = axes.get_yaxis_transform()
            axes.text(0.0, at, f" {row.label}", transform=place, va="center", weight="bold", fontsize=SMALL)
            axes.axhspan(at - 0.5, at + 0.5, color=RULE, alpha=0.35, linewidth=0)
        if row.effect:
            marker, colour = VERDICTS[row.effect["verdict"]]
            hollow = row.effect["verdict"] in HOLLOW
            draw_interval(axes, row.effect, at - 0.12 * bool(row.paper), colour, marker, hollow=hollow)
        if row.paper:
            draw_interval(axes, row.paper, at + 0.24 * bool(row.effect), FAINT, "D", hollow=True, size=4)
    margin = max((effect["margin"] for effect in effects), default=0)
    axes.axvspan(-margin, margin, color=RULE, alpha=0.35, linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    shown = [at for at, row in enumerate(rows) if not row.is_heading]
    axes.set_yticks(shown, [labels[at] for at in shown])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=difference_in(word, width))
    axes.spines["left"].set_visible(False)
    keys.append(Patch(color=RULE, alpha=0.5, label=f"within {margin:g} points"))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL - 1)
    return figure


@dataclass(frozen=True)
class _Row:
    """A row of a forest plot. `paper` is the effect in Orhan (2021). For a heading, `effect` is None."""

    label: str
    effect: dict[str, Any] | None = None
    paper: dict[str, Any] | None = None

    @property
    def is_heading(self) -> bool:
        return self.effect is None and self.paper is None


def _rows(effects: Sequence[dict[str, Any]]) -> list[_Row]:
    methods = {effect["method"] for effect in effects if effect["method"]}
    labels = dict(zip(map(id, effects), labels_of(effects), strict=True))
    by_effect = len(methods) > len(set(labels.values()))

    def short(effect: dict[str, Any]) -> str:
        return short_label(effect["method"], methods) if effect["method"] else "between methods"

    def label(effect: dict[str, Any]) -> str:
        return f"{labels[id(effect)]}{', ' + effect['arm'] if effect['arm'] else ''}"

    # Effects are grouped by split and method. If there are more methods than effects, they are grouped by split and
    # effect.
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for effect in effects:
        groups.setdefault((effect["split"], label(effect) if by_effect else short(effect)), []).append(effect)
    splits, seconds = ({key[at] for key in groups} for at in (0, 1))
    rows = []
    for (split, second), members in groups.items():
        if len(groups) > 1 or by_effect:
            rows.append(_Row(" \u00b7 ".join([split] * (len(splits) > 1) + [second] * (len(seconds) > 1 or by_effect))))
        if by_effect:  # Orhan (2021) has only one method, so its effect is drawn once per group
            rows += [_Row(short(one), one) for one in members]
            rows += [_Row("Orhan (2021)", None, members[0]["paper"])] if members[0].get("paper") else []
        else:
            rows += [_Row(label(one), one, one.get("paper")) for one in members]
    return rows


def draw_interval(
    axes: Axes, effect: dict[str, Any], at: float, colour: str, marker: str, *, hollow: bool, size: float = 5.5
) -> None:
    """Draw an effect's difference as a marker and its interval as a line. `at`: vertical position."""
    interval = effect["interval"]
    if interval:
        axes.plot([interval["low"], interval["high"]], [at, at], color=colour, linewidth=1.4, solid_capstyle="butt")
    face = "white" if hollow else colour
    axes.plot([effect["difference"]], [at], marker, color=colour, markerfacecolor=face, markersize=size, zorder=3)


def _legend_entries(effects: Sequence[dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    keys: list[Any] = []
    for verdict, (marker, colour) in VERDICTS.items():
        if any(effect["verdict"] == verdict for effect in effects):
            face = "white" if verdict in HOLLOW else colour
            keys.append(
                Line2D([], [], color=colour, marker=marker, markerfacecolor=face, markersize=5.5, label=verdict)
            )
    families = list(dict.fromkeys(effect["paper"]["family"] for effect in effects if effect.get("paper")))
    if families:
        label = f"Orhan (2021), {', '.join(families)}"
        keys.append(Line2D([], [], color=FAINT, marker="D", markerfacecolor="white", markersize=4, label=label))
    return keys


def plot_ratios(ratios: Sequence[dict[str, Any]], width: float | None = None) -> Figure:
    """Draw retention ratios with their intervals. A ratio of 1 means that the whole effect is retained.

    Args:
        ratios: retentions of effects.json.
        width: figure width in inches. Default: the width of a page.
    """
    figure, (axes,) = new_figure(1, size=(width or TWO_COLUMNS, 0.7 + 0.36 * len(ratios)))
    for at, one in enumerate(ratios):
        axes.plot([one["interval"]["low"], one["interval"]["high"]], [at, at], color=MUTED, linewidth=1.6)
        axes.plot([one["ratio"]], [at], "o", color=INK, markersize=5.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(ratios)), _ratio_names(ratios))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(ylim=(len(ratios) - 0.5, -0.5), xlabel="share of the effect that is retained")
    return figure


def _ratio_names(ratios: Sequence[dict[str, Any]]) -> list[str]:
    methods = {one["under"]["name"] for one in ratios}
    parts = [(one["name"], one["split"], short_label(one["under"]["name"], methods)) for one in ratios]
    differing = [at for at in range(3) if len({part[at] for part in parts}) > 1] or [0]
    return ["\n".join(part[at] for at in differing) for part in parts]
