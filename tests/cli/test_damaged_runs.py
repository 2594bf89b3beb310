"""Verbs report damaged files of finished runs, and folders without write access, without a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from petransfer.study.grid import Cell
from tests.cli import calls
from tests.report.made import METHODS, draw_nothing, make, recipe_of

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def study(elsewhere: Path) -> list[Cell]:
    """A study with two finished runs, in the folder `study`."""
    recipe = recipe_of(arms=["english"], methods=[METHODS[0]], seeds=[0, 1], effects=[])
    cells, _ = make(elsewhere / "study", recipe, examples=10)
    return cells


def _result(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        content = json.loads((run / "result.json").read_text())
        change(content)
        (run / "result.json").write_text(json.dumps(content))

    return apply


def _all_correct(run: Path) -> None:
    table = pyarrow.parquet.read_table(run / "examples.parquet")
    at = table.column_names.index("correct")
    right = table.set_column(at, "correct", pyarrow.array([True] * len(table)))
    pyarrow.parquet.write_table(right, run / "examples.parquet")


def _other_seed(run: Path) -> None:
    content = json.loads((run / "spec.json").read_text()) | {"seed": 99}
    (run / "spec.json").write_text(json.dumps(content))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "test is a number": (_result(lambda content: content.update(test=5)), "result.json"),
    "exact match is text": (_result(lambda content: content["test"].update(exact_match="5")), "result.json"),
    "exact match of 1000": (_result(lambda content: content["test"].update(exact_match=1000)), "result.json"),
    "NaN": (_result(lambda content: content["dev"].update(exact_match=float("nan"))), "result.json"),
    "cut": (lambda run: os.truncate(run / "result.json", 30), "result.json"),
    "empty": (lambda run: os.truncate(run / "result.json", 0), "result.json"),
    "binary": (lambda run: (run / "result.json").write_bytes(b"\x00\xff" * 50), "result.json"),
    "deleted": (lambda run: (run / "result.json").unlink(), "result.json"),
    "all correct": (_all_correct, "examples.parquet"),
    "another seed": (_other_seed, "spec.json"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_status_run_and_report_name_a_damaged_run_and_its_file(
    case: str, study: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    damage, file = DAMAGES[case]
    run = Path("study") / "runs" / study[0].run_id
    os.utime(run / file, ns=(1, 1))
    damage(run)
    verbs = {
        ("status", "study"): 0,
        ("plan", "study"): 0,
        ("run", "study", "--cpu"): 2,
        ("report", "./study"): 0,
    }
    for verb, code in verbs.items():
        assert calls.call(monkeypatch, *verb) == code, verb
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        if verb[0] != "plan":
            named = [line for line in (shown.out + shown.err).splitlines() if study[0].run_id in line and file in line]
            assert named, verb


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "a link to itself"])
def test_a_run_folder_that_is_a_file_or_a_broken_link_causes_no_traceback(
    kind: str, study: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    run = Path("study") / "runs" / study[0].run_id
    shutil.rmtree(run)
    if kind == "a file":
        run.write_text("not a folder")
    else:
        run.symlink_to("gone" if kind == "a dangling link" else run.name)
    for verb in (("status", "study"), ("plan", "study"), ("report", "./study"), ("run", "study", "--cpu")):
        code = calls.call(monkeypatch, *verb)
        shown = capsys.readouterr().err
        assert code in (0, 2), verb
        assert "Traceback" not in shown
    assert code == 2
    assert run.name in shown


@pytest.mark.parametrize("name", ["study", "compare"])
def test_report_accepts_a_study_folder_with_the_name_of_a_subcommand(
    name: str, study: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    if name != "study":
        Path("study").rename(name)
    assert calls.call(monkeypatch, "report", name) == 0
    shown = " ".join(capsys.readouterr().err.split())
    files = shown[shown.index(f"written to {name}: report.html") :].split(": ", 1)[1].split(", ")
    assert all(Path(name, file).exists() for file in files)
    assert Path(name, "report.html").is_file()
    assert calls.call(monkeypatch, "report", "study", name) == 0


@pytest.mark.parametrize("verb", [("report", "./study"), ("checkpoints", "cp", "nano/english", "copy")])
def test_a_read_only_folder_gives_one_error_line(
    verb: tuple[str, ...],
    study: list[Cell],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw_nothing(monkeypatch)

    def denied(place: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))

    really_open = os.open
    for name in ("mkdir", "makedirs", "rename", "replace"):
        monkeypatch.setattr(os, name, denied)
    monkeypatch.setattr(os, "open", lambda place, *how: (really_open if place == os.devnull else denied)(place, *how))
    monkeypatch.setattr(Path, "write_text", denied)
    error = calls.refused(monkeypatch, capsys, *verb)
    assert os.strerror(errno.EROFS) in error
    assert {path.name for path in Path().iterdir()} == {"study"}
