"""Draw the runs of a study: learning curves, and the scores of each seed."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from petransfer.effects.drawing import ONE_COLUMN, SMALL, TWO_COLUMNS, new_figure, wrapped
from petransfer.effects.palette import LINES, MARKERS, MUTED, RULE, SERIES, colours
from petransfer.recipe.effect_requests import short_label
from petransfer.report.run_groups import RunGroup
from petransfer.study.folders import StudyFolder
from petransfer.training.metrics_file import read_metrics
from petransfer.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

_reported_missing: list[str] = []

Panels = dict[tuple[str, str], list[RunGroup]]

# Maximum number of panels side by side in a plot that is as wide as a two-column page.
MOST_BESIDE = 4
_ROW = 0.19


def arm_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return matplotlib's color, marker and linestyle for every arm."""
    found = list(dict.fromkeys(names))
    # If there are more arms than colours, arms with one colour differ in marker and line style.
    by_name = colours(found)
    return {
        name: {
            "color": by_name[name],
            "marker": MARKERS[at % len(MARKERS)],
            "linestyle": LINES[(at // len(SERIES)) % len(LINES)],
        }
        for at, name in enumerate(found)
    }


def panels_of(groups: Sequence[RunGroup]) -> Panels:
    """Return the groups that each panel shows, by (split, method). The arm `scratch` is in every panel."""
    # The arm `scratch` always trains all weights, so it is compared with every method.
    methods = {group.method for group in groups if group.arm != "scratch"} or {group.method for group in groups}
    panels: Panels = {}
    for group in groups:
        for method in sorted(methods) if group.arm == "scratch" else [group.method]:
            panels.setdefault((group.split, method), []).append(group)
    return panels


def panel_grid(count: int, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` empty panels, in rows of at most four. `options` go to matplotlib's `subplots`."""
    columns = min(count, MOST_BESIDE)
    rows = math.ceil(count / columns)
    width = TWO_COLUMNS if columns > 1 else ONE_COLUMN
    figure, axes = new_figure(columns, rows, size=(width, 0.6 + 1.75 * rows), **options)
    for one in axes[count:]:
        one.remove()
    return figure, axes[:count]


def legend_below(figure: Figure, all_axes: Sequence[Axes]) -> None:
    keys = {name: line for axes in all_axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    width = figure.get_size_inches()[0]
    columns = max(2, min(6, int(width / 1.1)))
    figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL)


def learning_curves(
    groups: Sequence[RunGroup], study: StudyFolder, only: tuple[str, str] | None = None
) -> Figure | None:
    """Draw exact match on dev over the optimiser steps, with a panel for each split and method.

    A thin line is a seed. A thick line is the mean of an arm's seeds. `only`: (split, method) of a single panel.

    Returns:
        The figure. None if no run has a curve.
    """
    curves = {group.key: [curve for row in group.runs if (curve := _curve(study, row.cell.run_id))] for group in groups}
    panels = {
        place: members
        for place, members in panels_of([group for group in groups if curves[group.key]]).items()
        if only in (None, place)
    }
    if not panels:
        return None
    styles = arm_styles(group.arm for group in groups)
    figure, all_axes = panel_grid(len(panels), sharey=True, sharex=True)
    splits, labels = ({place[at] for place in panels} for at in (0, 1))
    for axes, ((split, method), members) in zip(all_axes, panels.items(), strict=True):
        for group in members:
            _draw_curves(axes, group.arm, curves[group.key], styles[group.arm])
        if len(panels) > 1:
            title = [split] * (len(splits) > 1) + [wrapped(short_label(method, labels), ONE_COLUMN)]
            axes.set_title("\n".join(title), fontsize=SMALL)
    label_outside(all_axes, "optimiser steps", "dev exact match, %")
    all_axes[0].set_ylim(-2, 102)
    legend_below(figure, all_axes)
    return figure


def label_outside(all_axes: Sequence[Axes], x: str, y: str) -> None:
    """Label only the x axes of the lowest panels and the y axes of the leftmost panels."""
    columns = min(len(all_axes), MOST_BESIDE)
    for at, axes in enumerate(all_axes):
        if at % columns == 0:
            axes.set_ylabel(y)
        if at + columns >= len(all_axes):  # no panel below this one
            axes.set_xlabel(x)
            axes.tick_params(labelbottom=True)


def _draw_curves(axes: Axes, arm: str, curves: Sequence[Any], style: dict[str, Any]) -> None:
    line = {"color": style["color"], "linestyle": style["linestyle"]}
    for curve in curves:
        axes.plot(*zip(*curve, strict=True), linewidth=0.5, alpha=0.5, **line)
    axes.plot(*_mean(curves), linewidth=1.8, label=arm, **line)


def by_arm(groups: Sequence[RunGroup], width: float = TWO_COLUMNS, split: str | None = None) -> Figure | None:
    """Draw test exact match and loss per target token, with a row for each arm and method.

    A dot is a seed. A bar is the mean over seeds.

    Args:
        width: figure width in inches. Below 5 inches, only exact match is drawn.
        split: a single split to draw. Default: all splits.

    Returns:
        The figure. None if no run is finished.
    """
    done = [group for group in groups if group.done and split in (None, group.split)]
    if not done:
        return None
    splits = list(dict.fromkeys(group.split for group in done))
    rows = {name: _rows([group for group in done if group.split == name]) for name in splits}
    shown = ("test", "loss")[: 1 if width < 5 else 2]
    tallest = max(wrapped(label, width).count("\n") for found in rows.values() for label, group in found if group)
    row = _ROW + 0.12 * tallest
    figure, cells = new_figure(
        len(shown), len(splits), size=(width, 0.55 * len(splits) + 0.2 + row * sum(map(len, rows.values()))),
        sharey="row", sharex="col", height_ratios=[len(rows[name]) + 1 for name in splits],
    )  # fmt: skip
    styles = arm_styles(group.arm for group in groups)
    for at, name in enumerate(splits):
        for column, figures in enumerate(shown):
            axes = cells[at * len(shown) + column]
            _draw_rows(axes, rows[name], figures, styles, column == 0, width)
            if len(splits) > 1 and column == 0:
                axes.set_title(name, fontsize=SMALL, loc="left", weight="bold")
    labels = {"test": "test exact match, %", "loss": "test loss per token, nats"}
    for axes, figures in zip(cells[-len(shown) :], shown, strict=True):
        axes.set_xlabel(labels[figures])
    return figure


def _rows(groups: Sequence[RunGroup]) -> list[tuple[str, RunGroup | None]]:
    """Return the rows of a panel as (label, group). The group of a heading is None."""
    methods = list(dict.fromkeys(group.method for group in groups))
    # With few groups per method, labels name the method and the arm. Otherwise each method has a heading.
    if len(groups) < 1.5 * len(methods):
        return [(f"{short_label(group.method, methods)}, {group.arm}", group) for group in groups]
    found: list[tuple[str, RunGroup | None]] = []
    for method in methods:
        if len(methods) > 1:
            found.append((short_label(method, methods), None))
        found += [(group.arm, group) for group in groups if group.method == method]
    return found


def _draw_rows(
    axes: Axes,
    rows: Sequence[tuple[str, RunGroup | None]],
    figures: str,
    styles: dict[str, Any],
    first: bool,
    width: float,
) -> None:
    for at, (label, group) in enumerate(rows):
        if group is None:
            axes.axhspan(at - 0.5, at + 0.5, color=RULE, alpha=0.35, linewidth=0)
            if first:
                place = axes.get_yaxis_transform()
                axes.text(0.01, at, label, transform=place, va="center", weight="bold", fontsize=SMALL - 1)
            continue
        values, colour = getattr(group, figures), styles[group.arm]["color"]
        axes.plot(values, [at] * len(values), "o", color=colour, markersize=3.2, alpha=0.6)
        if values:
            axes.plot([fmean(values)] * 2, [at - 0.36, at + 0.36], color=colour, linewidth=2.2)
        if group.paper and figures == "test":
            place = axes.get_yaxis_transform()
            text = f"paper {group.paper.mean:.1f}"
            axes.text(1.01, at, text, transform=place, va="center", fontsize=SMALL - 1, color=MUTED)
    shown = [wrapped(label, width) for label, group in rows if group]
    axes.set_yticks([at for at, row in enumerate(rows) if row[1]], shown)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08 if figures == "loss" else 0.14)


def run_curves(study: StudyFolder, run_id: str) -> list[tuple[str, Figure]]:
    """Draw a run's training loss, dev exact match and dev loss over the optimiser steps.

    Returns:
        (label, figure) for each metric with at least two values.
    """
    lines = read_metrics(study.run(run_id).path / "metrics.jsonl")
    found = []
    for key, label, colour in (("loss", "training loss, nats", SERIES[0]),
                               ("dev_em", "dev exact match, %", SERIES[2]),
                               ("dev_loss", "dev loss, nats", SERIES[3])):  # fmt: skip
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if len(points) < 2:
            continue
        figure, (axes,) = new_figure(1, size=(ONE_COLUMN, 2.3))
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, marker="o", markersize=2.5)
        axes.set(xlabel="optimiser steps", ylabel=label)
        if key == "dev_em":
            axes.set_ylim(-2, 102)
        elif all(value > 0 for _, value in points) and points[-1][1] < 0.1 * points[0][1]:
            axes.set_yscale("log")
        found.append((label, figure))
    return found


def save(figure: Figure, path: Path) -> None:
    """Save a figure as SVG, PDF and PNG. `path`: path without a suffix."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    write_svg(figure, path.with_suffix(".svg"))
    with mpl.rc_context({"pdf.fonttype": 42}), _missing_characters(log=True):
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None, "Creator": "petransfer"})
        figure.savefig(path.with_suffix(".png"), dpi=300, metadata={"Software": "petransfer"})


def write_svg(figure: Figure, target: Any) -> None:
    """Write a figure as SVG. `target`: a path or a binary file."""
    import matplotlib as mpl

    # Without a date and with a fixed salt, equal data give equal bytes. Text is stored as text, not as outlines.
    make_texts_visible(figure)
    with mpl.rc_context({"svg.hashsalt": "petransfer", "svg.fonttype": "none"}), _missing_characters(log=False):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": "petransfer"})


def make_texts_visible(figure: Figure) -> None:
    """Escape the invisible characters in a figure's texts, and write dollar signs as they are, not as formulas."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FuncFormatter):  # it formats the tick labels again each time the figure is drawn
                axis.set_major_formatter(FuncFormatter(functools.partial(_visible_label, formatter)))
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(visible(text.get_text(), keep="\n"))
        # names may contain `$`, which matplotlib would read as the beginning of a formula; its own labels of ticks on a
        # logarithmic axis are formulas
        if "$" in text.get_text() and "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)


def _visible_label(formatter: Any, value: float, position: int | None) -> str:
    return visible(formatter(value, position), keep="\n")


# Matplotlib's warnings about scripts that it does not shape, and about labels that are wider than the figure.
_NOT_SHOWN = ("Matplotlib currently does not support", "constrained_layout not applied")


@contextlib.contextmanager
def _missing_characters(log: bool) -> Iterator[None]:
    """Inside the context, turn matplotlib's warnings about characters that its font lacks into one line, or into none.

    log: whether to report the missing characters. In an SVG file, they are text and are drawn by the reader's program.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        missing = re.match(r"Glyph (\d+) .*missing from", str(one.message))
        if missing and log:
            _log_missing_characters(chr(int(missing[1])))
        elif not missing and not str(one.message).startswith(_NOT_SHOWN):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _log_missing_characters(first: str) -> None:
    """Log once per process that the font lacks a character such as `first`."""
    if _reported_missing:
        return
    _reported_missing.append(first)
    _log.warning(
        "the font of the plots lacks some characters, such as %s (U+%04X): the PDF and PNG files show boxes in their "
        "place; the SVG files and the page show them",
        visible(first),
        ord(first),
    )


def _curve(study: StudyFolder, run_id: str) -> list[tuple[int, float]]:
    lines = read_metrics(study.run(run_id).path / "metrics.jsonl")
    return [(line["step"], line["dev_em"]) for line in lines if "dev_em" in line]


def _mean(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """Return the steps that all curves have, and the mean over the curves at each step."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    found = [dict(curve) for curve in curves]
    return steps, [fmean(curve[step] for curve in found) for step in steps]
