"""Runs that differ in their seed alone, as one group: what tables and plots show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.table import Table

from petransfer.report.tables import Row


@dataclass(frozen=True)
class Group:
    """The runs of one arm and method on one split, by seed. Figures in percent EM and nats per target token."""

    arm: str
    method: str
    split: str
    runs: tuple[Row, ...]

    @property
    def done(self) -> tuple[Row, ...]:
        """Those that have figures."""
        return tuple(row for row in self.runs if row.status == "done")

    @property
    def dev(self) -> list[float]:
        """Exact match in distribution, one figure a seed."""
        return [row.dev for row in self.done if row.dev is not None]

    @property
    def test(self) -> list[float]:
        """Exact match out of distribution, one figure a seed."""
        return [row.test for row in self.done if row.test is not None]

    @property
    def log_prob(self) -> list[float]:
        """Mean log-probability per target token out of distribution, one figure a seed."""
        return [row.log_prob for row in self.done if row.log_prob is not None]


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """The groups in the order of the grid."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.cell.split, row.cell.arm, row.cell.method), []).append(row)
    return [Group(arm, method, split, tuple(runs)) for (split, arm, method), runs in found.items()]


COLUMNS = ("split", "arm", "method", "seeds", "dev EM %", "test EM %", "log p/token")


def table_of(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """One line a group: means over seeds, and in brackets the lowest and the highest seed."""
    return [
        (
            group.split,
            group.arm,
            group.method,
            _seeds(group),
            _spread(group.dev, 1),
            _spread(group.test, 1),
            _spread(group.log_prob, 3),
        )
        for group in groups
    ]


def terminal_table(groups: Sequence[Group], title: str) -> Table:
    """The same lines for a terminal."""
    table = Table(title=title, title_justify="left")
    for at, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if at > 2 else "left", no_wrap=True)
    for line in table_of(groups):
        table.add_row(*line)
    return table


def markdown(groups: Sequence[Group], effects: dict[str, Any]) -> str:
    """The table and the effects' sentences."""
    lines = [COLUMNS, ("---",) * 3 + ("---:",) * 4, *table_of(groups)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *(f"- {sentence}" for sentence in effects["sentences"]), ""])


def latex(groups: Sequence[Group]) -> str:
    """The table for a paper, with the rules of booktabs."""
    lines = [COLUMNS, *table_of(groups)]
    head, *body = [" & ".join(map(_escaped, line)) + r" \\" for line in lines]
    parts = [r"\begin{tabular}{lllrrrr}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "%_&#$" else letter for letter in text)


def _seeds(group: Group) -> str:
    done, asked = len(group.done), len(group.runs)
    return str(done) if done == asked else f"{done} of {asked}"


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
