"""Special characters in cells are escaped in every format of a table."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
import warnings

import pytest
from markupsafe import escape

from petransfer.effects.drawing import new_figure
from petransfer.report.html_parts import marked
from petransfer.report.plots import write_svg
from petransfer.report.tables import (
    csv_text,
    latex,
    markdown,
    markdown_text,
    table_of_text,
    without_emphasis,
    write_page,
)
from petransfer.visible_text import visible

HOSTILE = "<b>a|b</b>\x1b[2J"


def test_markdown_escapes_html_pipes_and_control_characters() -> None:
    text = markdown(table_of_text(("arm", "points"), [(HOSTILE, "-1")], names=1))
    assert text.splitlines() == ["| arm | points |", "| --- | ---: |", "| &lt;b&gt;a\\|b&lt;/b&gt;\\x1b[2J | -1 |"]
    assert markdown_text("a\nb") == "a b"


def test_markdown_marks_in_a_name_are_escaped() -> None:
    shown = without_emphasis("*b* _it_ `c` ~s~ $x$ add_jump <i>")
    assert shown == r"\*b\* \_it\_ \`c\` \~s\~ \$x\$ add_jump &lt;i&gt;"


def test_latex_escapes_special_characters() -> None:
    text = latex(table_of_text(("arm & b", "points"), [("50 %_x#$", "\u22121.0")], names=1))
    assert r"50 \%\_x\#\$ & $-$1.0 \\" in text
    assert r"arm \& b" in text
    assert text.splitlines()[:2] == [r"\begin{tabular}{lr}", r"\toprule"]


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1"])
def test_csv_cells_do_not_run_as_formulas_in_a_spreadsheet(cell: str) -> None:
    (_, row) = csv.reader(io.StringIO(csv_text(["name", "figure"], [(cell, -1.5)])))
    assert row == [f"'{cell}", "-1.5"]


def test_html_escapes_cells_and_titles() -> None:
    table = table_of_text((HOSTILE, "points"), [(HOSTILE, "1"), ("b", "2")], names=1, more=["points"], heading=HOSTILE)
    page = write_page("compare.html.jinja", HOSTILE, title_of_page=HOSTILE, lines=[HOSTILE], tables=[table])
    assert "<b>" not in page
    assert '<td class="number more">1</td>' in page
    assert "all columns" in page


def test_control_characters_are_shown_as_escapes() -> None:
    assert visible("a\x1b\x00") == "a\\x1b\\x00"


def test_constant_and_empty_columns_are_not_shown() -> None:
    columns = ("split", "effect", "under", "points", "paper")
    rows = [("right", "a-b", "lora", "1", ""), ("right", "a-b", "full", "2", "")]
    shown = table_of_text(columns, rows, names=3).condensed(first="effect")
    assert [column.name for column in shown.columns] == ["effect", "under", "points"]
    assert shown.caption == "Split right"
    assert shown.rows == (("a-b", "lora", "1"), ("a-b", "full", "2"))


@pytest.mark.parametrize(
    ("target", "generated", "found"),
    [
        ("a b c", "a x c", "a <mark>x</mark> c"),
        ("a b", "a b", "a b"),
        ("a", "", "<mark>nothing</mark>"),
        ("a", "a <script>", "a <mark>&lt;script&gt;</mark>"),
    ],
)
def test_wrong_words_of_a_prediction_are_marked(target: str, generated: str, found: str) -> None:
    assert marked(target, generated) == found


def test_a_terminal_without_a_minus_sign_prints_a_hyphen() -> None:
    code = "from petransfer.cli.utf8 import write_any_text; write_any_text(); print('\\u22121.0 \\u00e9')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert found.stdout == b"-1.0 ?" + os.linesep.encode()


def test_a_name_does_not_become_a_link_in_markdown() -> None:
    assert markdown_text("![arm](http://x.y/z.png) [1, 2]") == "![arm]\\(http://x.y/z.png) [1, 2]"


def test_very_long_texts_are_shown_without_marks() -> None:
    """The time to compare two texts grows faster than the square of their length."""
    began = time.process_time()
    assert marked("a " * 20_000, "a " * 19_999 + "<b>") == escape("a " * 19_999 + "<b>")
    assert time.process_time() - began < 2


def test_a_label_wider_than_the_plot_gives_no_warning() -> None:
    figure, (axes,) = new_figure(1, size=(2, 2))
    axes.set_yticks([0], ["a" * 300])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_svg(figure, io.StringIO())
