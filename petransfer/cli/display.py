"""Show the progress of runs: bars on a terminal, lines in other outputs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from petransfer.cli.terminal_text import print_text
from petransfer.plurals import count
from petransfer.study.durations import remaining_time

# If the output is not a terminal: seconds between two lines about the same running run.
LINE_EVERY = 30.0


class ShownRow(Protocol):
    """The status and progress of a run.

    Attributes:
        status: Such as `waiting`, `running`, `done` or `failed`.
        cell: The run of the grid.
        step: Optimiser steps so far.
        loss: The latest training loss. None before the first one.
        seconds_left: Estimated remaining time. None: unknown.
    """

    @property
    def status(self) -> str: ...
    @property
    def cell(self) -> Any: ...
    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def seconds_left(self) -> float | None: ...


@dataclass(frozen=True)
class View:
    """How to display the runs of a study.

    Attributes:
        title: The name of the study.
        read: Returns the current state of all runs.
        line: Describes a run in one line. An empty line is not printed.
        label: Returns the names of a run, such as the arm and the seed.
        score: Returns the latest score on dev as text, such as `87 %`. Empty without a score.
        score_name: Name of the score, such as `exact match on dev`.
        name: The beginning of each run's line, such as `fold 2`.
    """

    title: str
    read: Callable[[], Sequence[Any]]
    line: Callable[[Any], str]
    label: Callable[[Any], Mapping[str, str]]
    score: Callable[[Any], str] = lambda row: ""
    score_name: str = ""
    name: str = ""


def study_label(row: Any) -> dict[str, str]:
    """Return the names of a study's run, for `View.label`."""
    cell, rate = row.cell, row.cell.spec.train.learning_rate
    return {
        "arm": cell.arm,
        "method": cell.method,
        "split": cell.split,
        "rate": f"learning rate {rate:g}",
        "seed": f"seed {cell.seed}",
    }


def study_score(row: Any) -> str:
    """Return the latest exact match on dev, such as `87 %`. Empty before the first evaluation."""
    return "" if row.dev_so_far is None else f"{row.dev_so_far:.0f} %"


class Display:
    """A context manager that displays the progress of runs.

    Entering the context returns a function that updates the display. Call this function often.

    Args:
        view: The runs, and how to describe them.
        quiet: Whether to display nothing.
        console: Output for the display. None: stderr.
    """

    def __init__(self, view: View, quiet: bool, console: Console | None = None) -> None:
        self.view, self.quiet = view, quiet
        self.console = console or Console(stderr=True)
        self.live: Live | None = None
        self.ended: set[str] = set()
        self.reasons: set[str | None] = set()
        self.next = 0.0
        self.next_line = time.monotonic() + LINE_EVERY

    def __enter__(self) -> Callable[[], None]:
        if self.quiet:
            return lambda: None
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        else:
            rows = self.view.read()
            self.ended = {row.cell.run_id for row in rows if row.status == "done"}
            before = f", {len(self.ended):,} of them finished before" if self.ended else ""
            if len(rows) > 1:
                print_text(f"{self.view.title}: {count(len(rows), 'run')}{before}", file=sys.stderr)
        return self.tick

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def tick(self) -> None:
        """Display the progress of the runs, at most once a second."""
        now = time.monotonic()
        if now < self.next:
            return
        rows = self.view.read()
        if self.live:
            lines = progress_lines(self.view, rows, self.console.width, max(2, self.console.height - 3))
            self.live.update(Group(*(Text(line, no_wrap=True) for line in lines)), refresh=True)
        else:
            self._print(rows, now)
        # reading the state of ten thousand runs takes a second; use at most a twentieth of the time for it
        self.next = now + max(1.0, 20 * (time.monotonic() - now))

    def _print(self, rows: Sequence[ShownRow], now: float) -> None:
        """Print each run that has just ended, and from time to time each running run."""
        ended = [row for row in rows if row.status in ("done", "failed") and row.cell.run_id not in self.ended]
        running = [row for row in rows if row.status == "running"] if now >= self.next_line else []
        if running:
            self.next_line = now + LINE_EVERY
        for row in [*ended, *running]:
            reason = getattr(row, "failure", None)
            new = reason if reason not in self.reasons else ""  # many runs may fail for the same reason
            self.reasons.add(reason)
            line = self.view.line(row) + (f": {new}" if new else "")
            if line:
                print_text(line, file=sys.stderr)
        self.ended |= {row.cell.run_id for row in ended}


_UNFINISHED = ("running", "failed", "damaged", "interrupted", "waiting")


def progress_lines(view: View, rows: Sequence[ShownRow], width: int, most: int) -> list[str]:
    """Return at most `most` lines of up to `width` characters: a summary and the running runs."""
    running = [row for row in rows if row.status == "running"]
    names = _names(view, rows)
    lines = []
    if len(rows) > 1:
        counts = Counter(row.status for row in rows)
        meaning = f" (dev: {view.score_name})" if any(map(view.score, running)) else ""
        summary = [f"{counts['done']:,} of {len(rows):,} runs done"]
        summary += [f"{counts[status]:,} {status}" for status in _UNFINISHED if counts[status]]
        lines.append(_cut(f"{view.title}: {', '.join(summary)}{meaning}", width))
    room = most - len(lines)
    # the first line explains `dev`; a single run has no such line, and names the score in full
    score_name = "dev" if len(rows) > 1 else view.score_name
    lines += [progress_line(row, names[row.cell.run_id], view.score(row), width, score_name) for row in running[:room]]
    if len(running) > room:
        lines[-1] = f"... and {len(running) - room + 1} more running"
    return lines


def progress_line(row: ShownRow, name: str, score: str, width: int, score_name: str = "dev") -> str:
    """Return a run's name, bar, step, loss, dev score and remaining time in one line.

    The name is cut to fit. In a narrow terminal, `score_name` is shortened, as in `dev`.

    Args:
        name: Name of the run.
        score: Latest score as text. Empty without a score.
        width: Width of the line in characters.
        score_name: Name of the score, such as `exact match on dev`.
    """
    steps = int(getattr(row.cell, "spec", row.cell).train.steps)
    if row.loss is None:
        return _cut(f"{name} starting".strip(), width)
    step, loss, left = f"{row.step:,}/{steps:,}", f"loss {row.loss:.3f}", _left(row)
    short = "dev" if score_name.endswith("dev") else score_name.partition(" on ")[0]
    tails = [
        ", ".join(filter(None, (f"{step}{unit}", loss, f"{word} {score}" if score else "", left)))
        for unit, word in ((" steps", score_name), ("", score_name), ("", short))
    ]
    # space for a bar of six characters with brackets and a blank, and for a short name
    least = 9 + min(8, len(name) + bool(name))
    tail = next((tail for tail in tails if len(tail) + least <= width), tails[-1])
    room = width - len(tail) - 3
    name = _cut(name, max(0, room - 8))
    bar = max(4, min(40, room - len(name) - bool(name)))
    full = round(bar * min(1.0, row.step / steps))
    return _cut(f"{name}{' ' if name else ''}[{'#' * full}{'.' * (bar - full)}] {tail}", width)


def _left(row: ShownRow) -> str:
    train = getattr(row.cell, "spec", row.cell).train
    return remaining_time(row.seconds_left, bool(getattr(train, "early_stopping", None)))


def _names(view: View, rows: Sequence[ShownRow]) -> dict[str, str]:
    """Return a short name for each run, by run id."""
    labels = {row.cell.run_id: view.label(row) for row in rows}
    values: dict[str, set[str]] = {}
    for label in labels.values():
        for part, value in label.items():
            values.setdefault(part, set()).add(value)
    return {
        run_id: " ".join([view.name, *(value for part, value in label.items() if len(values[part]) > 1)]).strip()
        for run_id, label in labels.items()
    }


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…" * (width > 0)


def report_outcome(outcome: Any, runs: int) -> int:
    """Print the failures among `runs` runs, and return the exit code of the command."""
    for reason, number in Counter(outcome.failures.values()).items():
        print_text(f"error{f' ({number:,} runs)' if number > 1 else ''}: {reason}", file=sys.stderr)
    if outcome.interrupted:
        print_text("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    if outcome.failures:
        failed = f"{len(outcome.failures):,} of {count(runs, 'run')} failed"
        only_mistakes = len(outcome.mistakes) == len(set(outcome.failures.values()))
        todo = "correct the command and run it again" if only_mistakes else "run the same command again to retry"
        print_text(f"{failed}; {todo}", file=sys.stderr)
        return 2 if only_mistakes else 1
    if outcome.elsewhere:
        print_text(f"another process is executing {outcome.elsewhere:,} of {count(runs, 'run')}", file=sys.stderr)
        return 1
    return 0
