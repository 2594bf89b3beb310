"""Control, bidirectional and rare characters in the user's texts are escaped in every kind of output."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from rich.table import Table

from petransfer.cli.log_output import show_log
from petransfer.cli.table_layout import print_fitting
from petransfer.report import plots
from petransfer.report.heat_map import Heat, heat_map
from petransfer.report.html_parts import marked
from petransfer.report.inline_svg import inline_svg
from petransfer.report.tables import templates
from petransfer.visible_text import visible

BAD = [
    "\x1b[31mred",
    "a\bb",
    "\u202egnp.exe",
    "a\rb",
    "\x9b31m",
    "a\u2066x\u2069",
    "a\x01b",
    "a\u200bb",
    "\ud83d",
    "$x_{$",
]
RAW = "\x1b\b\u202e\r\x9b\u2066\x01\u200b\ud83d"


def heat(names: list[str]) -> Heat:
    rows = tuple(names)
    cells = tuple((float(at),) for at in range(len(rows)))
    return Heat(names[0], rows, (names[-1],), cells, tuple((None,) for _ in rows), "")


@pytest.mark.parametrize("as_page", [True, False], ids=["page", "files"])
def test_plots_with_bad_names_are_well_formed_and_give_no_warning(as_page: bool, tmp_path: Path) -> None:
    figure = heat_map([heat(BAD)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if as_page:
            drawn = inline_svg(figure, "x", BAD[2])
        else:
            plots.save(figure, tmp_path / "plot")
            drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(drawn)
    assert not set(drawn) & set(RAW)
    assert "\\u202egnp.exe" in drawn
    assert "\\x1b[31mred" in drawn
    assert "$x_{$" in drawn


def test_characters_that_are_missing_in_the_font_are_reported_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plots._reported_missing.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        for number in range(2):
            plots.save(heat_map([heat(["\u4f60\u597d", "\U0001f600", "plain"])]), tmp_path / f"plot{number}")
    (line,) = caplog.messages
    assert "U+4F60" in line
    assert "PDF and PNG files show boxes" in line
    assert "\u4f60\u597d" in (tmp_path / "plot0.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", BAD[:-1])
def test_pages_tables_and_messages_escape_bad_texts(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-xdist sends pytest's log records between processes, and it cannot send a lone surrogate
    monkeypatch.setattr(logging.getLogger("petransfer"), "propagate", False)
    page = templates().from_string("{{ x }} {{ y }} {{ x | breakable }}").render(x=text, y=marked("a", text))
    out = io.StringIO()
    table = Table("head")
    table.add_row(text)
    print_fitting(table, Console(file=out, width=80))
    show_log()
    logging.getLogger("petransfer.x").warning("name %s", text)
    printed = capsys.readouterr().err
    for shown, times in ((page, 3), (out.getvalue(), 1), (printed, 1)):
        assert not set(shown) & set(RAW)
        assert shown.count(visible(text, keep="")) == times


def test_joiners_in_other_scripts_and_in_emoji_are_not_escaped() -> None:
    for text in (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f680",
        "plain",
        "two\nlines",
    ):
        assert visible(text) == text
    assert visible("a\u200db") == "a\\u200db"


def test_a_warning_of_a_library_is_shown_in_one_line_without_its_source_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show_log()
        warnings.warn_explicit("first\nsecond \x1b[31m", UserWarning, "/x/site-packages/peft/config.py", 3)
        warnings.warn_explicit("alone", UserWarning, "/x/y.py", 3)
    assert capsys.readouterr().err == "warning of peft: first second \\x1b[31m\nwarning: alone\n"
