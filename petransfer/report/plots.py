"""A study's pictures: learning curves, and exact match per arm with every seed shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from petransfer.report.groups import Group
from petransfer.study.ledger import StudyFolder
from petransfer.train.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of Okabe and Ito (2008), which the colour-blind can tell apart; the controls are grey and black.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B2A300")
_CONTROLS = {"scratch": "#000000", "random": "#7F7F7F", "english-newemb": "#B0B0B0"}


def learning_curves(groups: Sequence[Group], study: StudyFolder) -> Figure:
    """Exact match on dev over the steps: a panel a split and method, thin lines the seeds, thick ones their mean."""
    panels = _panels(groups)
    figure, all_axes = _grid(len(panels), sharey=True)
    colours = _colours(groups)
    for ((split, method), members), axes in zip(panels.items(), all_axes, strict=True):
        for group in members:
            curves = [_curve(study, row.cell.run_id) for row in group.runs]
            curves = [curve for curve in curves if curve]
            for curve in curves:
                axes.plot(*zip(*curve, strict=True), color=colours[group.arm], linewidth=0.6, alpha=0.5)
            if curves:
                axes.plot(*_mean(curves), color=colours[group.arm], linewidth=2, label=group.arm)
        axes.set(title=f"{split}, {method}", xlabel="optimiser steps", ylim=(-2, 102))
    all_axes[0].set_ylabel("dev exact match, %")
    all_axes[-1].legend(frameon=False, fontsize="small")
    return figure


def by_arm(groups: Sequence[Group]) -> Figure:
    """Out of distribution: exact match above, log-probability per target token below; a dot a seed, a bar the mean."""
    panels = _panels(groups)
    figure, cells = _grid(len(panels), rows=2)
    colours = _colours(groups)
    for at, ((split, method), members) in enumerate(panels.items()):
        ready = [group for group in members if group.done]
        for axes, name in ((cells[at], "test"), (cells[at + len(panels)], "log_prob")):
            for place, group in enumerate(ready):
                values = getattr(group, name)
                axes.plot([place] * len(values), values, "o", color=colours[group.arm], markersize=4, alpha=0.7)
                axes.hlines(fmean(values), place - 0.3, place + 0.3, color=colours[group.arm], linewidth=2.5)
            axes.set_xticks(range(len(ready)), [group.arm for group in ready], rotation=35, ha="right")
        cells[at].set(title=f"{split}, {method}", ylim=(0, None))
    cells[0].set_ylabel("test exact match, %")
    cells[len(panels)].set_ylabel("log p per token, nats")
    return figure


def save(figure: Figure, path: Path) -> None:
    """As SVG, whose bytes depend on the figures alone, and PNG. `path` has no suffix."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "petransfer", "svg.fonttype": "none"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": "petransfer"})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": "petransfer"})


def _panels(groups: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """The groups by split and method; an arm that is trained whole whatever the method stands in every panel."""
    methods = {group.method for group in groups if group.arm != "scratch"} or {group.method for group in groups}
    panels: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        for method in sorted(methods) if group.arm == "scratch" else [group.method]:
            panels.setdefault((group.split, method), []).append(group)
    return panels


def _colours(groups: Sequence[Group]) -> dict[str, str]:
    arms = [arm for arm in dict.fromkeys(group.arm for group in groups) if arm not in _CONTROLS]
    return {arm: _COLOURS[at % len(_COLOURS)] for at, arm in enumerate(arms)} | _CONTROLS


def _grid(columns: int, rows: int = 1, **options: Any) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 3.6 * columns, 0.5 + 3.0 * rows), layout="constrained")
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
