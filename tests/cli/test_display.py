"""Progress lines and tables fit terminals of 60, 80 and 120 columns, and tables hide no column."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from petransfer.cli import table_layout, terminal_text
from petransfer.cli.display import Display, View, progress_line, progress_lines, study_label, study_score
from petransfer.cli.evaluate import _cells, explanations
from petransfer.cli.table_layout import print_fitting
from petransfer.recipe.loading import load_recipe
from petransfer.report import run_table
from petransfer.report.run_table import RunRow
from petransfer.sharing.scoring import Scores
from petransfer.study.grid import expand
from tests.cli.calls import call
from tests.report.made import draw_nothing, make, recipe_of

WIDTHS = (60, 80, 120)


def rows() -> list[RunRow]:
    """Return runs of a recipe with long names: one finished, two running, one failed."""
    cells = expand(load_recipe("lora-scan"))
    running = RunRow(cells[1], "running", step=1234, loss=0.1234, dev_so_far=45.6, seconds_left=741)
    return [
        RunRow(cells[0], "done", step=12000, dev=99.0, test=88.8, log_prob=-0.012),
        running,
        replace(running, cell=cells[2], loss=None),
        RunRow(cells[3], "failed", failure="out of memory " * 20),
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_running_run_is_one_line_with_bar_step_loss_score_and_time(width: int) -> None:
    view = View("lora-scan", rows, run_table.plain_line, study_label, study_score, "exact match on dev")
    first, line, starting = progress_lines(view, rows(), width, 10)
    assert first.startswith("lora-scan: 1 of ")
    assert "2 running, 1 failed" in first
    steps = rows()[1].cell.spec.train.steps
    assert "dev: exact match on dev" in progress_lines(view, rows(), 120, 10)[0]
    for part in ("[#", ".]", f"1,234/{steps:,}", "loss 0.123", "dev 46 %", "12 min left"):
        assert part in line
    assert starting.endswith("starting")
    assert max(map(len, (first, line, starting))) <= width
    assert len(progress_lines(view, rows(), width, 2)) == 2


def test_the_summary_counts_the_runs_of_every_status() -> None:
    done, _, _, failed = rows()
    view = View("lora-scan", rows, run_table.plain_line, study_label, study_score, "exact match on dev")
    assert progress_lines(view, [done, done], 120, 10) == ["lora-scan: 2 of 2 runs done"]
    others = [replace(done, status=status) for status in ("interrupted", "waiting", "damaged", "waiting")]
    (summary,) = progress_lines(view, [done, *others, failed], 120, 10)
    assert summary == "lora-scan: 1 of 6 runs done, 1 failed, 1 damaged, 1 interrupted, 2 waiting"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_line_of_a_single_run_names_the_score_but_not_the_run(width: int) -> None:
    (row,) = rows()[1:2]
    view = View("one", lambda: [row], run_table.plain_line, study_label, study_score, "exact match on dev")
    (line,) = progress_lines(view, [row], width, 10)
    assert line.startswith("[#")
    assert len(line) <= width
    score = "exact match on dev 46 %" if width >= 80 else "dev 46 %"
    assert f", loss 0.123, {score}, 12 min left" in line
    assert ("12,000 steps," in line) == (width >= 80)
    (named,) = progress_lines(replace(view, name="fold 2"), [row], width, 10)
    assert named.startswith("fold 2 [#") == (width >= 80)
    assert len(progress_line(row, "a long name " * 20, "46 %", width)) <= width
    long = replace(row, step=12345, dev_so_far=100.0)
    (line,) = progress_lines(view, [long], width, 10)
    assert "[#" in line
    assert line.endswith("12 min left")


def test_plain_progress_lines_state_a_repeated_failure_reason_once(capsys: pytest.CaptureFixture[str]) -> None:
    failed = [RunRow(cell, "failed", failure="no such file") for cell in expand(load_recipe("lora-scan"))[:3]]
    view = View("lora-scan", lambda: failed, run_table.plain_line, study_label, study_score)
    with Display(view, False, Console(file=io.StringIO())) as tick:
        tick()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "lora-scan: 3 runs"
    assert [line.endswith("failed: no such file") for line in lines[1:]] == [True, False, False]


def _assert_whole(text: str, width: int, words: set[str]) -> None:
    """Check that no line is wider than the terminal, and that every word is printed, possibly on several lines."""
    assert max(map(len, text.splitlines())) <= width
    flat = "".join(text.split()).replace("│", "").replace("┃", "")
    for word in words:
        assert word in text or "".join(word.split()) in flat, word


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("columns", [2, 6, 16])
def test_a_wide_table_is_wrapped_or_printed_row_by_row(width: int, columns: int) -> None:
    table = Table(title="all of it")
    heads = [f"head{at}" for at in range(columns)]
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in range(2):
        table.add_row(*(f"value{row}{at} and more" for at in range(columns)))
    out = io.StringIO()
    print_fitting(table, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert all(head in text for head in heads)
    assert all(f"value{row}{at}" in text for row in range(2) for at in range(columns))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study with three arms and three methods."""
    return make(tmp_path_factory.mktemp("study") / "made", recipe_of(seeds=[0, 1, 2]), examples=4)[1].path


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_is_broken(width: int) -> None:
    """Lines are broken at white space and hyphens. A table that is too wide even then is printed row by row."""
    table = Table("method", "split", "seed", "dev EM %", "test EM %", "test loss per token", "state")
    table.add_row(
        "lora r16 new-embeddings 32-bit", "held-out", "0", "99.0", "98.5", "-1e-05", Text("interrupted", "red")
    )
    out = io.StringIO()
    print_fitting(table, Console(file=out, width=width))
    words = [word.strip("│┃") for word in out.getvalue().split()]
    for word in ("embeddings", "32-bit", "interrupted", "-1e-05"):
        assert any(found.endswith((word, f"{word};")) for found in words), word
    assert all(part in out.getvalue() for part in ("lora", "r16", "new-", "loss", "token"))


def test_a_word_longer_than_its_column_is_folded() -> None:
    table = Table("file", "size")
    table.add_row("x" * 70, "1")
    out = io.StringIO()
    print_fitting(table, Console(file=out, width=60))
    assert "".join(out.getvalue().split()).replace("│", "").count("x") == 70
    assert max(map(len, out.getvalue().splitlines())) <= 60


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_of_status_report_and_checkpoints_fit_the_terminal(
    width: int, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table_layout, "UNLIMITED", width)
    monkeypatch.setattr(terminal_text, "width_of", lambda stream: width)
    draw_nothing(monkeypatch)
    out = study
    assert call(monkeypatch, "status", str(out), "--json") == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    words = {run["arm"] for run in runs} | {str(round(run["test_em"], 1)) for run in runs}
    for verb in (["status", str(out)], ["report", str(out)]):
        assert call(monkeypatch, *verb) == 0
        text = capsys.readouterr().out
        table = [line for line in text.splitlines() if "│" in line or "┃" in line or line.startswith("  ")]
        assert table
        assert max(map(len, table)) <= width
        if verb[0] == "status":
            _assert_whole("\n".join(text.splitlines()[:-1]), width, words)
    assert call(monkeypatch, "checkpoints", "ls") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert "english" in text
    assert "nano" in text


def test_eval_explains_its_columns() -> None:
    one = Scores("first", "lines", 30, 50.0, -1.0, None, 100.0, 20, 0)
    exact_match, loss, check = explanations([one])
    assert exact_match.startswith("exact match %: ")
    assert loss.startswith("loss per token: ")
    assert "texts were generated for 20 of the 30 examples" in check
    assert "generated for" not in "".join(explanations([one], by_generation=True))
    assert "generated for all 20 examples; all agree" in explanations([replace(one, examples=20)])[-1]
    rows = [replace(one, claimed=50.0, seen_rows=(1,), seen=0.0), replace(one, label="second", generated=25)]
    several = "\n".join(explanations(rows))
    assert "20 to 25 of the 30" in several
    found = {name for row in rows for name in _cells(row, several=True)}
    for column in found:
        assert f"{column}: " in several or column.removeprefix("exact match % of ") in several, column
    assert len(found) == 6
    assert not any(word in " ".join(found) for word in ("EM", "log p", "claimed", "generated"))


def test_terms_in_the_cells_of_a_table_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("method", "split", "dev EM %")
    table.add_row("lora r16 new-embeddings 4-bit", "held-out", "50.0")
    table.add_row("full 32-bit", "held-out", "50.0")
    table_layout.print_meanings(table)
    lines = capsys.readouterr().out.splitlines()
    for start in ("dev: ", "EM: ", "r16: the adapter's rank is 16", "new-embeddings: ", "held-out: "):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert [line for line in lines if "-bit: " in line] == [
        f"{bits}-bit: each weight of the base model has {bits} bits." for bits in (4, 32)
    ]
    assert not [line for line in lines if line.startswith(("test: ", "arm: "))]


@pytest.mark.parametrize("width", [20, 60, 200])
def test_texts_of_a_table_are_not_read_as_markup(width: int) -> None:
    """`[qv]` in a pattern of layer names must not be read as a colour, nor `[/x]` as a closing tag."""
    table = Table(title="a [/b]", caption="[red]")
    for name in ("[i]arm", "method"):
        table.add_column(name)
    table.add_row("[/x]", "on-.*[qv]$")
    table.add_row("\x1b[31m", "plain")
    out = io.StringIO()
    print_fitting(table, Console(file=out, width=width))
    for text in ("a [/b]", "[red]", "[i]arm", "[/x]", "on-.*[qv]$", "\\x1b[31m"):
        assert text in out.getvalue(), out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_table_that_is_too_wide_has_constant_columns_in_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="study")
    for head in ("split", "method", "score"):
        table.add_column(head)
    for method in ("lora", "full"):
        table.add_row("opposite_right_of_everything", f"{method} with-a-long-name-of-many-words", "1.5 (1.2 to 1.9)")
    out = io.StringIO()
    print_fitting(table, Console(file=out, width=40))
    text = out.getvalue()
    assert text.count("opposite_right_of_everything") == 1
    assert "all rows: split" in text
    assert "lora" in text
    assert "full" in text
    assert len(table.columns) == 3, "the table of the caller must not be changed"


def test_verdicts_and_unquantised_layers_in_cells_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("method", "p (Holm)", "verdict")
    table.add_row("lora 8-bit but wo", "0.33", "inconclusive")
    table_layout.print_meanings(table)
    text = capsys.readouterr().out
    for start in ("but wo: ", "p (Holm): ", "inconclusive: ", "8-bit: "):
        assert f"\n{start}" in f"\n{text}"
    assert "saturated" not in text
