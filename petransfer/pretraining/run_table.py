"""Show the runs of a pretraining recipe as a table, as lines of text, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from petransfer.pretraining.grid import PretrainCell
from petransfer.study.durations import remaining_time
from petransfer.study.folders import Status, StudyFolder
from petransfer.training.metrics_file import read_metrics


@dataclass(frozen=True)
class PretrainingRow:
    """The progress of one run.

    Attributes:
        step: Optimiser steps done.
        tokens: Tokens of text used so far.
        loss, valid_loss: In nats per target token. None before the first measurement.
        seconds_left: Estimated seconds to the last step.
        failure: The error of a failed run. Otherwise None.
    """

    cell: PretrainCell
    status: Status
    step: int = 0
    tokens: int = 0
    loss: float | None = None
    valid_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    failure: str | None = None


def rows_of(cells: Sequence[PretrainCell], study: StudyFolder) -> list[PretrainingRow]:
    """Return the progress of every run."""
    return [_row(cell, study) for cell in cells]


def _row(cell: PretrainCell, study: StudyFolder) -> PretrainingRow:
    folder = study.run(cell.run_id)
    status = folder.status()
    if status == "failed":
        return PretrainingRow(cell, status, failure=folder.failure())
    lines = read_metrics(folder.path / "metrics.jsonl")
    if not lines:
        return PretrainingRow(cell, status)
    last = lines[-1]
    step, seconds = last["step"], last["seconds"]
    tokens_per_step = cell.train.batch_size * cell.recipe.noise.window
    valid = next((line["valid_loss"] for line in reversed(lines) if "valid_loss" in line), None)
    return PretrainingRow(
        cell,
        status,
        step=step,
        tokens=step * tokens_per_step,
        loss=last["loss"],
        valid_loss=valid,
        tokens_per_second=step * tokens_per_step / seconds if seconds else None,
        seconds_left=(cell.train.steps - step) * seconds / step,
    )


def terminal_table(rows: Sequence[PretrainingRow], title: str, limit: int | None = None) -> Table:
    """Return a table of losses and progress, one row per run. limit: the largest number of rows."""
    table = Table(title=title, title_justify="left")
    table.add_column("arm", no_wrap=True)
    table.add_column("size", no_wrap=True)
    for name in ("seed", "tokens seen", "loss", "validation loss"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state")
    shown = rows if limit is None else rows[:limit]
    for row in shown:
        cell = row.cell
        figures = (f"{row.tokens:,}" if row.tokens else "", _figure(row.loss), _figure(row.valid_loss))
        table.add_row(cell.arm, cell.size, str(cell.seed), *figures, _state(row))
    if len(shown) < len(rows):
        table.caption = f"and {len(rows) - len(shown)} more"
    return table


def plain_line(row: PretrainingRow) -> str:
    """Return a run as one line of text, without the reason of a failure."""
    head = f"{row.cell.arm} | {row.cell.size} | seed {row.cell.seed}"
    if row.status == "done":
        return f"{head} | {row.tokens:,} tokens seen | validation loss {_figure(row.valid_loss)}"
    loss = f", loss {row.loss:.3f}" if row.loss is not None else ""
    return f"{head} | {_state(row)}{loss}"


def as_json(rows: Sequence[PretrainingRow]) -> list[dict[str, Any]]:
    """Return the rows as plain values that can be written as JSON."""
    plain = []
    for row in rows:
        content = asdict(row)
        del content["cell"]
        cell = {"run_id": row.cell.run_id, "arm": row.cell.arm, "size": row.cell.size, "seed": row.cell.seed}
        plain.append(cell | content)
    return plain


def _state(row: PretrainingRow) -> str:
    if row.status != "running" or row.tokens_per_second is None or row.seconds_left is None:
        return row.status
    steps = f"{row.step}/{row.cell.train.steps}"
    return f"running {steps}, {row.tokens_per_second:,.0f} tokens/s, {remaining_time(row.seconds_left)}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
