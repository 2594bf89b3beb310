"""The command line as a user calls it, in this process."""

from __future__ import annotations

import sys

import pytest

from petransfer.cli import main


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`petransfer ARGUMENTS`; its exit code."""
    monkeypatch.setattr(sys, "argv", ["petransfer", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, begun: bool = False
) -> str:
    """The error of `petransfer ARGUMENTS`, which must be one line with exit code 2, with an empty stdout.

    begun: whether the mistake is found only after the run has begun, so that stdout has a table of runs.
    """
    capsys.readouterr()
    code = call(monkeypatch, *arguments)
    out, written = capsys.readouterr()
    assert code == 2, written
    assert begun or out == "", "a refusal prints nothing on stdout"
    errors = [line for line in written.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, written
    assert "Traceback" not in written
    return errors[0]
