"""Print petransfer's log messages to stderr, as plain lines that fit the terminal."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from typing import TextIO

from petransfer.cli.terminal_text import fitted, width_of
from petransfer.errors import reason_of
from petransfer.visible_text import visible


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A logging handler that writes to the current `sys.stderr`."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return fitted(visible(super().format(record)), width_of(sys.stderr))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a library's warning as one line, without its place in the library's code."""
    found = re.search(r"[/\\\\]site-packages[/\\\\](\w+)", filename)
    logging.getLogger("petransfer").warning(
        "warning%s: %s", f" of {found[1]}" if found else "", reason_of(message, 500)
    )


def show_log(verbose: bool = False, quiet: bool = False) -> None:
    """Print log messages to stderr, from level INFO on. `quiet` starts at WARNING, and `verbose` at DEBUG."""
    logger = logging.getLogger("petransfer")
    for handler in list(logger.handlers):
        if isinstance(handler, _StderrHandler):
            logger.removeHandler(handler)
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    warnings.showwarning = _show_warning
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


def keep_from_other_handlers() -> None:
    """Keep petransfer's messages from the root logger, whose handlers would print each message a second time.

    Some libraries, such as absl, install a handler for the root logger when they are used.
    """
    logging.getLogger("petransfer").propagate = False
