"""Scoring an adapter on other data warns about labels that the adapter was not trained on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from petransfer.data import Example, SplitData
from petransfer.errors import UserError
from petransfer.sharing import task_data


def test_labels_that_the_adapter_was_not_trained_on_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tuple(Example(n, "text", label, "all") for n, label in enumerate("012"))
    monkeypatch.setattr(task_data, "data_of", lambda *_: SplitData(rows, rows, rows, ("0", "1", "2")))

    def message(metrics: tuple[str, ...], *labels: str) -> str:
        caplog.clear()
        bundle: Any = SimpleNamespace(spec=SimpleNamespace(task=SimpleNamespace(metrics=metrics)), label="mine")
        task_data.warn_of_untrained_labels(bundle, labels, "new.csv", None)
        return caplog.text

    found = message(("exact_match", "accuracy"), "0", "1.0", "2.0")
    assert "new.csv has 2 labels that mine was not trained on: 1.0, 2.0 (trained on: 0, 1, 2)" in found
    assert message(("exact_match", "accuracy"), "0", "2") == ""
    assert message(("exact_match",), "x") == ""

    def gone(*_: Any) -> SplitData:
        raise UserError("the data are gone")

    monkeypatch.setattr(task_data, "data_of", gone)
    assert message(("accuracy",), "x") == ""
