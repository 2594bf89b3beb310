"""How things stand while runs go on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

_ORDER = ("running", "failed", "done")


class ShownRow(Protocol):
    """A run as a table shows it."""

    @property
    def status(self) -> str: ...
    @property
    def cell(self) -> Any: ...


@dataclass(frozen=True)
class View:
    """What is shown. read: the rows as they stand. table: rows, title and a limit as a table. line: a row in a line."""

    title: str
    read: Callable[[], Sequence[Any]]
    table: Callable[[Sequence[Any], str, int | None], Table]
    line: Callable[[Any], str]


class Display:
    """A context whose value is called often, and shows how things stand at most once a second."""

    def __init__(self, view: View, quiet: bool) -> None:
        self.view, self.quiet = view, quiet
        self.console = Console(stderr=True)
        self.live: Live | None = None
        self.said: set[str] = set()
        self.next = 0.0
        self.next_line = time.monotonic() + 30

    def __enter__(self) -> Callable[[], None]:
        if self.quiet:
            return lambda: None
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        else:
            rows = self.view.read()
            self.said = {row.cell.run_id for row in rows if row.status == "done"}
            print(f"{self.view.title}: {len(rows)} runs, {len(self.said)} of them finished before", file=sys.stderr)
        return self.tick

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def tick(self) -> None:
        """Shows how things stand."""
        now = time.monotonic()
        if now < self.next:
            return
        rows = self.view.read()
        if self.live:
            self._redraw(self.live, rows)
        else:
            self._say(rows, now)
        # a look at ten thousand runs takes a second; at most a twentieth of the time is spent on looking
        self.next = now + max(1.0, 20 * (time.monotonic() - now))

    def _redraw(self, live: Live, rows: Sequence[ShownRow]) -> None:
        room = max(4, self.console.size.height - 8)
        if len(rows) > room:
            rows = sorted(rows, key=lambda row: _ORDER.index(row.status) if row.status in _ORDER else len(_ORDER))
        live.update(self.view.table(rows, self.view.title, room), refresh=True)

    def _say(self, rows: Sequence[ShownRow], now: float) -> None:
        """A line for every run that ended, and every half minute one for each that is under way."""
        ended = [row for row in rows if row.status in ("done", "failed") and row.cell.run_id not in self.said]
        running = [row for row in rows if row.status == "running"] if now >= self.next_line else []
        if running:
            self.next_line = now + 30
        for row in [*ended, *running]:
            print(self.view.line(row), file=sys.stderr, flush=True)
        self.said |= {row.cell.run_id for row in ended}


def print_table(table: Table) -> None:
    """On a terminal as wide as that is; a file or a pipe gets whole names."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def report_outcome(outcome: Any, runs: int) -> int:
    """Says how a call ended that did not end well; the exit code."""
    for reason in outcome.mistakes:
        print(f"error: {reason}", file=sys.stderr)
    if outcome.interrupted:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    if outcome.failures:
        print(
            f"{len(outcome.failures)} of {runs} runs failed; run the same command again to retry them", file=sys.stderr
        )
        return 2 if len(outcome.mistakes) == len(set(outcome.failures.values())) else 1
    if outcome.elsewhere:
        print(f"{outcome.elsewhere} of {runs} runs are being executed by another process", file=sys.stderr)
        return 1
    return 0
