"""Test numbers with a noun in the singular or plural."""

from __future__ import annotations

from petransfer.plurals import count


def test_the_noun_agrees_with_its_number() -> None:
    assert [count(number, "run") for number in (0, 1, 2, 1200)] == ["0 runs", "1 run", "2 runs", "1,200 runs"]
    assert (count(1, "batch"), count(2, "batch"), count(3, "process")) == ("1 batch", "2 batches", "3 processes")
