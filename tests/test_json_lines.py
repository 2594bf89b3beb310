"""JSON on one line."""

from __future__ import annotations

import json

import pytest

from petransfer.json_lines import json_line


@pytest.mark.parametrize(
    "sign", ["\x00", "\n", "\r", "\x0b", "\x1b", "\x1e", "\x7f", "\x85", "\x9b", "\u2028", "\u2029"]
)
def test_no_sign_ends_a_line_or_reaches_a_terminal(sign: str) -> None:
    content = {f"größe{sign}": [f'a "{sign}" b\\', 1.5, None]}
    line = json_line(content)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "größe" in line
    assert json.loads(line) == content
