"""`train --quoting` sets whether quotes are text or enclose cells. It is refused for formats without quoting."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from petransfer.cli import main
from petransfer.data.rows.options import RowOptions
from petransfer.data.rows.store import find_sources
from petransfer.errors import UserError


@pytest.mark.parametrize(("quoting", "message"), [("none", "'\"so\" 0'"), ("csv", "'so 0'")])
def test_quotes_are_text_or_enclose_cells(
    quoting: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    cell = '"so" 0' if quoting == "none" else '"so 0"'
    (tmp_path / "a.tsv").write_text(f"{cell}\tyes\n" + "".join(f"so {n}\tyes\n" for n in range(1, 20)))
    arguments = ["petransfer", "train", "nano/english", "a.tsv", "--quoting", quoting, "--plan", "--cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    caught = capsys.readouterr()
    assert message in caught.out + caught.err


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [("quoting", "none", "a.jsonl"), ("delimiter", "comma", "a.jsonl"), ("config", "en", "a.csv")],
)
def test_an_option_that_the_format_does_not_use_is_refused(key: str, value: str, name: str, tmp_path: Path) -> None:
    rows = '{"input": "so", "target": "yes"}\n' if name == "a.jsonl" else "input,target\nso,yes\n"
    (tmp_path / name).write_text(rows)
    given = RowOptions(data_dir=tmp_path, train=name, **{key: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"{key} is '{value}'.*leave {key} out"):
        find_sources(given)
    find_sources(replace(given, sha256="0" * 64))  # a saved recipe, which has a hash, stays valid
