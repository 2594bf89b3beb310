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
