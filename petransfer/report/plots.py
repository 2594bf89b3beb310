"""A study's pictures: learning curves, and exact match per arm with every seed shown."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from petransfer.effects.palette import MUTED
from petransfer.effects.palette import colours as colours_of
from petransfer.report.run_groups import Group
from petransfer.study.folders import StudyFolder
from petransfer.training.metrics_file import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panels = dict[tuple[str, str], list[Group]]


def learning_curves(groups: Sequence[Group], study: StudyFolder) -> Figure:
    """Exact match on dev over the steps: a panel a split and method, thin lines the seeds, thick ones their mean."""
    colours = colours_of([group.arm for group in groups])
    figure, used = _in_bands(groups, [functools.partial(draw_curves, study=study, colours=colours)], sharey=True)
    _legend(used, groups)
    return figure


# Of panels beside each other; more go into further bands.
MOST_BESIDE = 4


def _in_bands(
    groups: Sequence[Group], draws: Sequence[Callable[[Axes, list[Group]], None]], **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with the panels of each split and method above each other, one for each of `draws`, and those in use."""
    panels = panels_of(groups)
    bands = max(1, math.ceil(len(panels) / MOST_BESIDE))
    columns = max(1, math.ceil(len(panels) / bands))
    figure, cells = grid(columns, bands * len(draws), **options)
    used = []
    for at, ((split, method), members) in enumerate(panels.items()):
        band, column = divmod(at, columns)
        for row, draw in enumerate(draws):
            axes = cells[(band * len(draws) + row) * columns + column]
            draw(axes, members)
            if row == 0:
                axes.set_title(f"{split}\n{method}", fontsize="medium")
            if column:
                axes.set_ylabel("")
            used.append(axes)
    for axes in cells:
        if axes not in used:
            axes.set_axis_off()
    return figure, used


def _legend(all_axes: Sequence[Axes], groups: Sequence[Group]) -> None:
    """In the last panel, for all of them: an arm need not be trained by every method."""
    keys = {name: line for axes in all_axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [arm for arm in dict.fromkeys(group.arm for group in groups) if arm in keys]
    all_axes[-1].legend([keys[name] for name in names], names, frameon=False, fontsize="small")


def draw_curves(axes: Axes, members: Sequence[Group], study: StudyFolder, colours: dict[str, str]) -> None:
    """One panel of learning curves."""
    for group in members:
        curves = [_curve(study, row.cell.run_id) for row in group.runs]
        curves = [curve for curve in curves if curve]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=colours[group.arm], linewidth=0.6, alpha=0.5)
        if curves:
            axes.plot(*_mean(curves), color=colours[group.arm], linewidth=2, label=group.arm)
    axes.set(xlabel="optimiser steps", ylabel="dev exact match, %", ylim=(-2, 102))


def by_arm(groups: Sequence[Group]) -> Figure:
    """Out of distribution: exact match above, log-probability per target token below; a dot a seed, a bar the mean."""
    colours = colours_of([group.arm for group in groups])
    draws = [functools.partial(draw_arms, figure=figure, colours=colours) for figure in ("test", "log_prob")]
    return _in_bands(groups, draws)[0]


_FIGURES = {"test": "test exact match, %", "log_prob": "log p per token, nats"}


def draw_arms(axes: Axes, members: Sequence[Group], figure: str, colours: dict[str, str]) -> None:
    """One panel: each arm's seeds as dots, their mean as a bar, and the paper's mean as a hollow diamond."""
    ready = [group for group in members if group.done]
    for place, group in enumerate(ready):
        values = getattr(group, figure)
        axes.plot([place] * len(values), values, "o", color=colours[group.arm], markersize=4, alpha=0.7)
        axes.hlines(fmean(values), place - 0.3, place + 0.3, color=colours[group.arm], linewidth=2.5)
        if group.paper and figure == "test":
            axes.plot([place + 0.3], [group.paper.mean], "D", markerfacecolor="none", color=MUTED, markersize=4.5)
    axes.set_xticks(range(len(ready)), [group.arm for group in ready], rotation=35, ha="right")
    axes.set_ylabel(_FIGURES[figure])
    if figure == "test":
        top = axes.get_ylim()[1]
        axes.set_ylim(-0.03 * top, top)  # what lies at 0 is seen whole


def save(figure: Figure, path: Path) -> None:
    """As SVG, whose bytes depend on the figures alone, and PNG. `path` has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_svg(figure, path.with_suffix(".svg"))
    figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": "petransfer"})


def write_svg(figure: Figure, target: Any) -> None:
    """To a path or a file: no date, and text as text."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "petransfer", "svg.fonttype": "none"}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": "petransfer"})


def panels_of(groups: Sequence[Group]) -> Panels:
    """The groups by split and method; an arm that is trained whole whatever the method stands in every panel."""
    methods = {group.method for group in groups if group.arm != "scratch"} or {group.method for group in groups}
    panels: Panels = {}
    for group in groups:
        for method in sorted(methods) if group.arm == "scratch" else [group.method]:
            panels.setdefault((group.split, method), []).append(group)
    return panels


def grid(
    columns: int, rows: int = 1, size: tuple[float, float] | None = None, **options: Any
) -> tuple[Figure, list[Any]]:
    """A figure of panels without needless lines. size: in inches, that of all panels together."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (1.6 + 3.6 * columns, 0.5 + 3.0 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curve(study: StudyFolder, run_id: str) -> list[tuple[int, float]]:
    lines = read_metrics(study.run(run_id).path / "metrics.jsonl")
    return [(line["step"], line["dev_em"]) for line in lines if "dev_em" in line]


def _mean(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """Over the seeds that got so far, at every step that all of those measured."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    found = [dict(curve) for curve in curves]
    return steps, [fmean(curve[step] for curve in found) for step in steps]
