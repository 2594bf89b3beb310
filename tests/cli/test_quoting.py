"""`train --quoting` says whether quotes are text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from petransfer.cli import main


@pytest.mark.parametrize(("quoting", "said"), [("none", "'\"so\" 0'"), ("csv", "'so 0'")])
def test_quotes_are_text_or_enclose_cells(
    quoting: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert said in caught.out + caught.err
