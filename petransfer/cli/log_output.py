"""Print petransfer's log messages to stderr, as plain lines that fit the terminal."""

from __future__ import annotations

import logging
import sys

from petransfer.cli.terminal_text import fitted, width_of
from petransfer.report.tables import visible


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A logging handler that writes to the current `sys.stderr`."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return fitted(visible(super().format(record)), width_of(sys.stderr))


def show_log(verbose: bool = False, quiet: bool = False) -> None:
    """Print log messages to stderr: INFO, WARNING (`quiet`) or DEBUG (`verbose`) and above."""
    logger = logging.getLogger("petransfer")
    for handler in list(logger.handlers):
        if isinstance(handler, _StderrHandler):
            logger.removeHandler(handler)
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
