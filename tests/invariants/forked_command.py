"""Run a petransfer command in a fork of a process that has already imported all modules.

A command that is started in the usual way imports modules for several seconds. A kill in its first second would usually
come before it has done anything. A forked command reads its arguments and opens its first files within milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.invariants.preloaded"])


class ForkedCommand:
    """A running command with the methods of `subprocess.Popen` that the kill tools use. Its output goes to `log`."""

    def __init__(self, arguments: Sequence[str], folder: Path, log: Path) -> None:
        self.arguments, self.log = list(arguments), log
        self._process = _CONTEXT.Process(target=_run, args=(self.arguments, str(folder), str(log)))
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command has ended and return its exit code."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout or 0.0)
        return code

    def message(self) -> str:
        """Return the end of the command's output."""
        return self.log.read_text(errors="replace")[-2000:]


def _run(arguments: list[str], folder: str, log: str) -> None:
    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["petransfer", *arguments]
    from petransfer.cli import main

    main()
