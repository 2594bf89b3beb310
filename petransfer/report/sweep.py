"""Show a learning-rate sweep as tables, plots and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from petransfer.effects.drawing import ONE_COLUMN, SMALL, wrapped
from petransfer.effects.palette import INK
from petransfer.recipe.effect_requests import short_label
from petransfer.report.plots import arm_styles, label_outside, legend_below, panel_grid
from petransfer.report.run_table import RunRow, counts, state_of
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.sweep import read_sweep, sweep_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SweepGroup = dict[str, Any]

# Maximum number of tick labels (learning rates) below a panel.
MOST_TICKS = 4


def groups_of(cells: Sequence[Cell], study: StudyFolder) -> list[SweepGroup]:
    """Return the sweep's results for each arm and method of the study.

    `own_rate` and `own_steps` are the study's learning rate and number of steps.
    """
    own = {(cell.arm, cell.method): cell.spec.train for cell in cells}
    found = []
    for one in (read_sweep(study) or {}).get("groups", ()):
        train = own.get((one["arm"], one["method"]))
        if train:
            found.append(one | {"own_rate": train.learning_rate, "own_steps": train.steps})
    return found


def unswept_note(cells: Sequence[Cell], groups: Sequence[SweepGroup]) -> str:
    """Return a note on arms and methods whose learning rate was not swept. '' if all were swept."""
    known = {(one["arm"], one["method"]) for one in groups}
    others: dict[str, list[str]] = {}
    for arm, method in _places(cells):
        if (arm, method) not in known:
            others.setdefault(method, []).append(arm)
    if not groups and sum(map(len, others.values())) == 1:
        return "No other learning rate was tried; `petransfer sweep` tries several and scores them on the dev rows."
    if others and not groups:
        return "No other learning rates were tried: each arm and method has the learning rate of the recipe."
    named = "; ".join(f"{method}: {', '.join(arms)}" for method, arms in others.items())
    return f"No other learning rates were tried for these methods and arms. {named}." if others else ""


def _places(cells: Sequence[Cell]) -> dict[tuple[str, str], None]:
    return dict.fromkeys((cell.arm, cell.method) for cell in cells)


def progress_line(study: StudyFolder) -> str:
    """Return the progress of a sweep in one line. '' if there is no sweep."""
    folder = sweep_folder(study)
    found = [folder.run(name).status() for name in sorted(folder.names())]
    return f"sweep: {counts(found)}" if found else ""


def plain_line(row: RunRow) -> str:
    cell = row.cell
    rate = cell.spec.train.learning_rate
    head = f"{cell.arm} | {cell.method} | {cell.split} | learning rate {rate:g} | seed {cell.seed}"
    return f"{head} | dev EM {row.dev:.1f} %" if row.status == "done" else f"{head} | {state_of(row)}"


COLUMNS = ("arm", "method", "dev EM % (loss) by learning rate", "chosen", "study's own")


def lines_of(groups: Sequence[SweepGroup]) -> list[tuple[str, ...]]:
    """Return one table row for each arm and method, with dev scores at each learning rate.

    Exact match (percent) and loss (nats per target token) are means over splits and seeds.
    """
    return [
        (
            one["arm"],
            one["method"],
            ", ".join(map(_seen, one["rates"])),
            f"{one['chosen']:g}" if one["chosen"] else "",
            f"{one['own_rate']:g}",
        )
        for one in groups
    ]


def _seen(one: dict[str, Any]) -> str:
    if one["dev_em"] is None:
        failed = any(run["status"] == "failed" for run in one["runs"])
        return f"{one['rate']:g}: {'failed' if failed else 'not done'}"
    loss = "" if one["dev_loss"] is None else f" ({one['dev_loss']:.3f})"
    return f"{one['rate']:g}: {one['dev_em']:.1f}{loss}"


def terminal_table(groups: Sequence[SweepGroup], title: str) -> Table:
    shown = Table(title=f"{title}: sweep", title_justify="left")
    for at, name in enumerate(COLUMNS):
        shown.add_column(name, justify="right" if at > 2 else "left", no_wrap=at != 2)
    for line in lines_of(groups):
        shown.add_row(*line)
    return shown


def snippet(content: dict[str, Any]) -> str:
    """Return the chosen learning rates as YAML for a recipe. `content`: content of sweep.json."""
    rates = {"learning_rate": content["learning_rate"]}
    return yaml.safe_dump(rates, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None).strip()


def sentences(groups: Sequence[SweepGroup]) -> list[str]:
    """Return warnings about the chosen learning rates."""
    lines = []
    shorter = [one for one in groups if one["steps"] < one["own_steps"]]
    if shorter:
        lines.append(
            f"The learning rates were chosen at {_steps(shorter, 'steps')}; the study trains for "
            f"{_steps(shorter, 'own_steps')}, for which other learning rates may be better."
        )
    unchosen = [_named(one) for one in groups if not one["chosen"]]
    edges = [f"{_named(one)} ({one['edge']} learning rate)" for one in groups if one["edge"]]
    others = [_named(one) for one in groups if one["chosen"] not in (None, one["own_rate"])]
    for text, members in {
        "No learning rate was chosen, because runs failed or are not finished": unchosen,
        "The lowest or highest learning rate tried was chosen; a value outside this range may be better": edges,
        "The study trains with another learning rate than the chosen one": others,
    }.items():
        if members:
            lines.append(f"{text}: {'; '.join(members)}.")
    return lines


def _named(one: SweepGroup) -> str:
    return f"{one['arm']}, {one['method']}"


def _steps(groups: Sequence[SweepGroup], key: str) -> str:
    found = sorted({one[key] for one in groups})
    return f"{found[0]:,} steps" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,} steps"


def by_method(groups: Sequence[SweepGroup]) -> dict[str, list[SweepGroup]]:
    found: dict[str, list[SweepGroup]] = {}
    for one in groups:
        found.setdefault(one["method"], []).append(one)
    return found


def plot(groups: Sequence[SweepGroup], only: str | None = None) -> Figure:
    """Draw dev exact match over the learning rate, with a panel for each method.

    A dot is a run. A line goes through an arm's means. A ring marks the chosen learning rate.

    only: a single method to draw. Default: all methods.
    """
    panels = {method: members for method, members in by_method(groups).items() if only in (None, method)}
    drawn, all_axes = panel_grid(len(panels), sharey=True)
    styles = arm_styles(one["arm"] for one in groups)
    for (method, members), axes in zip(panels.items(), all_axes, strict=True):
        _draw(axes, members, styles)
        if len(panels) > 1:
            axes.set_title(wrapped(short_label(method, panels), ONE_COLUMN), fontsize=SMALL)
    label_outside(all_axes, "learning rate", "dev exact match, %")
    legend_below(drawn, all_axes)
    return drawn


def _draw(axes: Axes, members: Sequence[SweepGroup], styles: dict[str, dict[str, Any]]) -> None:
    for one in members:
        style = styles[one["arm"]]
        for rate in one["rates"]:
            dots = [run["dev_em"] for run in rate["runs"] if run["dev_em"] is not None]
            axes.plot(
                [rate["rate"]] * len(dots), dots, style["marker"], color=style["color"], markersize=2.5, alpha=0.5
            )
        means = {rate["rate"]: rate["dev_em"] for rate in one["rates"] if rate["dev_em"] is not None}
        axes.plot(list(means), list(means.values()), linewidth=1.2, markersize=3.5, label=one["arm"], **style)
        if one["chosen"] in means:
            at_best = [one["chosen"]], [means[one["chosen"]]]
            axes.plot(*at_best, "o", color=INK, markersize=8, markerfacecolor="none", linestyle="none")
    axes.set(xscale="log", ylim=(-2, 104))
    tried = sorted({rate["rate"] for one in members for rate in one["rates"]})
    shown = tried[:: math.ceil(len(tried) / MOST_TICKS)]
    axes.set_xticks(shown, [f"{rate:g}" for rate in shown], rotation=35, ha="right")
    axes.minorticks_off()


def alt(method: str, members: Sequence[SweepGroup]) -> str:
    best = [
        f"{one['arm']} {rate['dev_em']:.1f} % at {rate['rate']:g}"
        for one in members
        for rate in one["rates"]
        if rate["rate"] == one["chosen"]
    ]
    return f"Dev exact match over the learning rate, {method}; chosen: {', '.join(best) or 'none'}"


def caption(method: str, members: Sequence[SweepGroup]) -> str:
    return f"{method}, after {_steps(members, 'steps')}"
