"""The page of terminal transcripts has all transcripts of its script, and no line is wider than the terminal."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest

from tests.docs.test_code_blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "tutorials" / "transcripts.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The module of the script that writes the page. It is not part of the package."""
    pytest.importorskip("pty", reason="only on Linux and macOS")
    spec = importlib.util.spec_from_file_location("record_transcripts", ROOT / "docs" / "record_transcripts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_transcript_of_the_script(script: ModuleType) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M) == [one.title for one in script.TRIES]
    assert re.findall(r"^\$ petransfer (.+)$", text, re.M) == [line for one in script.TRIES for line in one.commands]
    assert re.search(r"on .*, with one thread. All commands\s+together\s+took \d+ min", text)


def test_every_transcript_has_an_adapter_and_predicts_or_asks_for_data() -> None:
    for block in blocks_of(PAGE):
        assert "adapter: results/" in block.text
        assert "$ petransfer predict" in block.text or "Add data" in block.text


def test_no_recorded_line_is_wider_than_the_terminal(script: ModuleType) -> None:
    lines = [line for block in blocks_of(PAGE) for line in block.text.splitlines() if not line.startswith("$ ")]
    assert max(map(len, lines)) <= script.COLUMNS


def test_a_screen_has_the_text_that_a_terminal_would_show(script: ModuleType) -> None:
    screen = script.Screen()
    screen.write("first\r\n[#...] 1/9\r\x1b[2K[##..] 2/9\r\n\x1b[1A\x1b[2K\rlast   \r\n")
    assert screen.text == "first\nlast"
    assert screen.bars == ["[#...] 1/9", "[##..] 2/9"]
