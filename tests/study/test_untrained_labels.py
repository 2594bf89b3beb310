"""Labels that occur in the test rows only are counted before training."""

from __future__ import annotations

from petransfer.data import Example, SplitData
from petransfer.study.encoded_data import untrained_labels_notes


def _rows(*targets: str) -> tuple[Example, ...]:
    return tuple(Example(index, "text", target, "all") for index, target in enumerate(targets))


def test_labels_without_a_train_row_are_counted() -> None:
    assert untrained_labels_notes(SplitData(_rows("yes", "no"), _rows("no"), _rows("yes", "no"))) == []
    (note,) = untrained_labels_notes(SplitData(_rows("yes", "no"), _rows("no"), _rows("yes", "maybe", "maybe", "x")))
    assert "2 labels" in note
    assert "3 test rows" in note
    assert "maybe, x" in note
