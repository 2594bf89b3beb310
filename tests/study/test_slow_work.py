"""Slow work is announced while it runs. Fast work is not announced."""

from __future__ import annotations

import time

import pytest

from petransfer.study.slow_work import naming_slow_work
from tests.cli.calls import call


@pytest.mark.parametrize("slow", [True, False])
def test_only_slow_work_is_announced(
    slow: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("petransfer.study.slow_work.SILENCE", 0.01 if slow else 60)
    caplog.set_level("INFO", logger="petransfer")
    with naming_slow_work("reading the rows of data.csv"):
        time.sleep(0.2 if slow else 0)
    assert caplog.messages == ["reading the rows of data.csv ..."] * slow


@pytest.mark.usefixtures("elsewhere")
def test_train_announces_that_it_reads_rows_and_counts_tokens(
    tiny_t5: object, tiny_rows: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("petransfer.study.slow_work.SILENCE", 0.0)
    assert call(monkeypatch, "train", str(tiny_t5), str(tiny_rows), "--bits", "32", "--plan", "--cpu") == 0
    message = capsys.readouterr().err
    assert f"reading the rows of {tiny_rows} ..." in message
    assert "counting tokens, and estimating time and memory ..." in message
