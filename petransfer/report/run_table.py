"""Show the runs of a study in the terminal and in table.csv, one run per row."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from petransfer.atomic_files import write_text
from petransfer.effects.reference import paper_score
from petransfer.plurals import count
from petransfer.recipe.metrics import HEADINGS
from petransfer.report.tables import csv_text
from petransfer.study.durations import remaining_time
from petransfer.study.folders import Status, StudyFolder
from petransfer.study.grid import Cell
from petransfer.training.metrics_file import read_metrics

# The heading of the mean cross-entropy of a target token on test, in nats. Files have its negative, which is the mean
# log-probability.
LOSS = "test loss per token"


@dataclass(frozen=True)
class RunRow:
    """The state and scores of one run. None means that a value is unknown.

    Attributes:
        step: number of completed optimiser steps.
        loss: training loss of an unfinished run, in nats per target token.
        dev_so_far: latest exact match on dev of an unfinished run, in percent.
        examples_per_second: speed of an unfinished run.
        seconds_left: estimated remaining time of an unfinished run.
        dev, test: exact match in percent.
        log_prob: mean log-probability per target token on test, in nats.
        trained: number of trained parameters.
        disagreements: number of examples whose generated text contradicts the forward pass.
        generated: numbers of generated texts and of disagreements. None if texts were generated for a sample only.
        failure: error of a failed run.
        weights: bytes and dtypes of the loaded weights.
        scores: other test metrics by name, 0 to 100.
    """

    cell: Cell
    status: Status
    step: int = 0
    loss: float | None = None
    dev_so_far: float | None = None
    examples_per_second: float | None = None
    seconds_left: float | None = None
    dev: float | None = None
    test: float | None = None
    log_prob: float | None = None
    trained: int | None = None
    disagreements: int = 0
    generated: tuple[int, int] | None = None
    failure: str | None = None
    weights: dict[str, Any] | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def test_loss(self) -> float | None:
        """Mean cross-entropy per target token on test, in nats. Tables show it in place of `log_prob`."""
        return None if self.log_prob is None else 0.0 - self.log_prob


def rows_of(cells: Sequence[Cell], study: StudyFolder) -> list[RunRow]:
    """Return the state and scores of every run of a grid, read from the run folders."""
    begun = study.names()
    return [_row(cell, study) if cell.run_id in begun else RunRow(cell, "waiting") for cell in cells]


def counts(statuses: Sequence[Status]) -> str:
    """Return the number of runs for each status in one line."""
    kinds = collections.Counter(statuses)
    parts = [f"{kinds[kind]:,} {kind}" for kind in get_args(Status) if kinds[kind]]
    return f"{count(len(statuses), 'run')}: {', '.join(parts)}"


def _row(cell: Cell, study: StudyFolder) -> RunRow:
    folder = study.run(cell.run_id)
    status = folder.status()
    result = folder.result()
    if result:
        test = result.get("test", {})  # the runs of a learning-rate sweep have no test scores
        return RunRow(
            cell,
            status,
            step=result["steps"],
            dev=result["dev"]["exact_match"],
            test=test.get("exact_match"),
            log_prob=test.get("log_prob_per_token"),
            trained=result["trained_parameters"],
            disagreements=result["dev"]["disagreements"] + test.get("disagreements", 0),
            generated=_generated(test),
            weights=result.get("weights"),
            scores={name: test[name] for name in HEADINGS if name in test},
        )
    if status in ("failed", "damaged"):
        return RunRow(cell, status, failure=folder.failure())
    lines = read_metrics(folder.path / "metrics.jsonl")
    if not lines:
        return RunRow(cell, status)
    last = lines[-1]
    pace = max(last["seconds"], 1e-3) / last["step"]  # the file has milliseconds
    left = (cell.spec.train.steps - last["step"]) * pace
    dev = next((line["dev_em"] for line in reversed(lines) if "dev_em" in line), None)
    return RunRow(cell, status, last["step"], last["loss"], dev, cell.spec.train.batch_size / pace, left)


# A shortened table shows rows with these states first.
_INTEREST: tuple[Status, ...] = ("running", "failed", "damaged", "interrupted", "done", "waiting")
# Maximum number of rows of a table that is printed once; a table that is redrawn fits the height of the screen.
ROWS = 200


def terminal_table(rows: Sequence[RunRow], title: str, limit: int | None = None) -> Table:
    """Return a table for the terminal. `limit`: maximum number of rows."""
    table = Table(title=title, title_justify="left")
    for name in ("arm", "method", "split"):
        table.add_column(name, no_wrap=True)
    for name in ("seed", "dev EM %", "test EM %", LOSS):
        table.add_column(name, justify="right", no_wrap=True)
    measured = metrics_of(rows)
    for name in measured:
        table.add_column(f"test {HEADINGS[name]}", justify="right", no_wrap=True)
    table.add_column("state")
    shown = of_interest(rows, limit)
    for row in shown:
        cell = row.cell
        figures = (_rounded(row.dev, 1), _rounded(row.test, 1), _rounded(row.test_loss, 3))
        others = [_rounded(row.scores.get(name), 1) for name in measured]
        table.add_row(cell.arm, cell.method, cell.split, str(cell.seed), *figures, *others, state_of(row))
    if len(shown) < len(rows):
        table.caption = f"and {len(rows) - len(shown)} more; --json has all"
    return table


def of_interest(rows: Sequence[RunRow], limit: int | None) -> Sequence[RunRow]:
    """Return at most `limit` rows. Running and failed runs come first."""
    if limit is None or len(rows) <= limit:
        return rows
    return sorted(rows, key=lambda row: _INTEREST.index(row.status))[:limit]


def metrics_of(rows: Sequence[RunRow]) -> list[str]:
    """Return the metrics, other than exact match, for which a run has a value."""
    return [name for name in HEADINGS if any(name in row.scores for row in rows)]


def plain_line(row: RunRow) -> str:
    """Return a run as one line of text, for output that does not go to a terminal."""
    cell = row.cell
    head = f"{cell.arm} | {cell.method} | {cell.split} | seed {cell.seed}"
    if row.status == "done":
        figures = f"dev EM {_rounded(row.dev, 1)} % | test EM {_rounded(row.test, 1)} %"
        return f"{head} | {figures} | {LOSS} {_rounded(row.test_loss, 3)}"
    return f"{head} | {state_of(row)}"


def weight_lines(rows: Sequence[RunRow]) -> list[str]:
    """Return a line about the loaded weights for each arm and method with a quantised base model.

    The line has the size in MB, the share of each dtype, and the layers that are not quantised.
    """
    lines: dict[tuple[str, str], str] = {}
    for row in rows:
        if row.weights and row.weights.get("wide"):
            shares = ", ".join(f"{share:.1f} % {dtype}" for dtype, share in row.weights["share"].items())
            size = sum(row.weights["bytes"].values()) / 1e6
            wide = ", ".join(_reason(*kind) for kind in row.weights["wide"].items())
            line = f"{row.cell.arm}, {row.cell.method}: {size:,.1f} MB of weights, {shares}; not quantised: {wide}"
            cost = row.weights.get("quantisation")
            if cost:
                line += f"; loss before training {cost['loss_at_16_bits']:.3f} at 16 bits, {cost['loss']:.3f} quantised"
            lines.setdefault((row.cell.arm, row.cell.method), line)
    return list(lines.values())


def _reason(kind: str, error: dict[str, Any]) -> str:
    return f"{kind} ({error['why']})" if error.get("why") else kind


def generated_lines(rows: Sequence[RunRow]) -> list[str]:
    """Return a line with the number of test examples on which generation and one forward pass disagree.

    The list is empty if no run generated texts for all test examples.
    """
    found = [row.generated for row in rows if row.generated]
    if not found:
        return []
    answers, apart = map(sum, zip(*found, strict=True))
    size = f"{count(len(found), 'run')}, {count(answers, 'test answer')}"
    return [f"scored by generating texts: {size}. The scores from one forward pass differ for {apart:,} of them"]


def _generated(test: dict[str, Any]) -> tuple[int, int] | None:
    return (test["examples"], test["disagreements"]) if test.get("by_generation") else None


def state_of(row: RunRow) -> str:
    if row.failure:
        return row.status
    if row.status == "done":
        return "done" if not row.disagreements else f"done, {row.disagreements:,} generated texts contradict the scores"
    if row.loss is None:
        return row.status
    train = row.cell.spec.train
    dev = "" if row.dev_so_far is None else f", dev EM {row.dev_so_far:.0f} %"
    state = f"{row.status} at step {row.step:,} of {train.steps:,}, loss {row.loss:.3f}{dev}"
    if row.status != "running":
        return state
    left = f", {remaining_time(row.seconds_left, bool(train.early_stopping))}" if row.seconds_left else ""
    return f"{state}, {row.examples_per_second:.0f} examples/s{left}"


COLUMNS = (
    "run_id",
    "arm",
    "method",
    "split",
    "seed",
    "status",
    "dev_em",
    "test_em",
    "test_log_prob_per_token",
    "trained",
    "paper_em",
)


def write_csv(rows: Sequence[RunRow], path: Path, family: str) -> None:
    """Write table.csv with one line per run. `family`: family of the study's checkpoints."""
    measured = metrics_of(rows)
    lines = []
    for row in rows:
        cell = row.cell
        paper = paper_score(family, cell.arm, cell.spec.task.name, cell.split)
        figures = (*map(_finite, (row.dev, row.test, row.log_prob)), row.trained, paper and round(paper.mean, 4))
        others = [_finite(row.scores.get(name)) for name in measured]
        lines.append([cell.run_id, cell.arm, cell.method, cell.split, cell.seed, row.status, *figures, *others])
    write_text(path, csv_text([*COLUMNS, *(f"test_{name}" for name in measured)], lines))


def as_json(rows: Sequence[RunRow]) -> list[dict[str, Any]]:
    return [
        {
            "run_id": row.cell.run_id,
            "arm": row.cell.arm,
            "method": row.cell.method,
            "split": row.cell.split,
            "seed": row.cell.seed,
            "status": row.status,
            "step": row.step,
            "steps": row.cell.spec.train.steps,
            "dev_em": _finite(row.dev),
            "test_em": _finite(row.test),
            "test_log_prob_per_token": _finite(row.log_prob),
            "trained_parameters": row.trained,
            "failure": row.failure,
            **{f"test_{name}": _finite(value) for name, value in row.scores.items()},
        }
        for row in rows
    ]


def _rounded(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def _finite(value: float | None) -> float | None:
    """Return the value. None if the value is NaN or infinite, which JSON cannot express."""
    return value if value is not None and math.isfinite(value) else None
