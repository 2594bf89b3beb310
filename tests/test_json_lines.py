"""Test that JSON is written on one line, and without numbers that are not finite."""

from __future__ import annotations

import json

import pytest

from petransfer.json_lines import json_line, with_finite_numbers


@pytest.mark.parametrize(
    "sign", ["\x00", "\n", "\r", "\x0b", "\x1b", "\x1e", "\x7f", "\x85", "\x9b", "\u2028", "\u2029"]
)
def test_line_breaks_and_control_characters_are_escaped(sign: str) -> None:
    content = {f"größe{sign}": [f'a "{sign}" b\\', 1.5, None]}
    line = json_line(content)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "größe" in line
    assert json.loads(line) == content


def test_numbers_that_are_not_finite_become_null() -> None:
    content = {"a": [1.5, float("nan")], "b": (float("-inf"), 2), "c": {"d": float("inf"), "e": True}}
    assert with_finite_numbers(content) == {"a": [1.5, None], "b": [None, 2], "c": {"d": None, "e": True}}
