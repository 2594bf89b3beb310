"""Test the shortening of long error messages of libraries."""

from __future__ import annotations

from petransfer.errors import reason_of


def test_a_long_reason_is_cut_between_two_words() -> None:
    assert reason_of("one two  three\nfour", 100) == "one two three four"
    assert reason_of("one two three four", 18) == "one two three four"
    assert reason_of("one two three four", 15) == "one two..."
    assert reason_of("/a/very/long/path/without/blanks", 12) == "/a/very/l..."
    assert reason_of(ValueError()) == "ValueError"
