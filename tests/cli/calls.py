"""Call the command line as a user does, but in the process of the test."""

from __future__ import annotations

import sys

import pytest

from petransfer.cli import main


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `petransfer ARGUMENTS` and return the exit code."""
    monkeypatch.setattr(sys, "argv", ["petransfer", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, begun: bool = False
) -> str:
    """Run `petransfer ARGUMENTS`, check for exit code 2, one error line and an empty stdout, and return the line.

    begun: whether the error occurs after the run has begun. Then stdout may contain a table of runs.
    """
    capsys.readouterr()
    code = call(monkeypatch, *arguments)
    out, written = capsys.readouterr()
    assert code == 2, written
    assert begun or out == "", "a refused command must not print to stdout"
    errors = [line for line in written.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, written
    assert "Traceback" not in written
    return errors[0]
