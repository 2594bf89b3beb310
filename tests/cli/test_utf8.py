"""Arguments and output with non-ASCII letters, if the locale, the arguments or the output are not UTF-8."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from petransfer.cli.utf8 import lost_characters_note, write_any_text
from tests.cli.calls import call, refused

PLAIN = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def test_non_ascii_paths_work_under_a_locale_without_utf8(tmp_path: Path) -> None:
    """The process has the locale C and not Python's UTF-8 mode. The command imports no torch, so that it is fast."""
    (tmp_path / "Größe").mkdir()
    arguments = ["-m", "petransfer", "recipes", "cp", "lora-scan", "Größe/Übung.yaml"]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | PLAIN,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "Größe").iterdir()] == ["Übung.yaml"]
    assert b"Gr??e/?bung.yaml" in done.stdout + done.stderr


def test_non_ascii_paths_columns_and_prefixes_are_read_and_printed(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "Größe").mkdir()
    rows = "".join(f"gehe {n},é {n}\n" for n in range(40))
    (elsewhere / "Größe" / "Daten.csv").write_text(f"größe,été\n{rows}", encoding="utf-8")
    columns = ("--input-column", "größe", "--target-column", "été")
    given = ("nano/english", "Größe/Daten.csv", *columns, "--out", "Übung", "--prefix", "löse: ")
    assert call(monkeypatch, "train", *given, "--plan", "--json", "--cpu") == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["task"]["options"]["train"] == "Größe/Daten.csv"
    assert (recipe["task"]["options"]["input"], recipe["task"]["prefix"]) == ("größe", "löse: ")


def test_an_argument_that_is_not_utf8_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = b"na\xefve.csv".decode("utf-8", "surrogateescape")  # as Python decodes these bytes in an argument
    message = refused(monkeypatch, capsys, "train", "nano/english", name)
    assert all(part in message for part in ("argument 3 (na?ve.csv) is not UTF-8 at character 3", "rename files"))


def test_json_keeps_every_letter_if_the_output_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", written)
    arguments = ("predict", "nano/english", "é größe 😀", "--cpu", "--json", "--max-new-tokens", "2")
    assert call(monkeypatch, *arguments) == 0
    written.flush()
    assert json.loads(written.buffer.getvalue())["input"] == "é größe 😀"  # type: ignore[attr-defined]


def test_characters_that_the_output_cannot_write_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", written)
    write_any_text()
    print("größe 👍 红狗 \u2212")
    written.flush()
    assert written.buffer.getvalue().decode("cp1252").split() == ["größe", "?", "??", "-"]  # type: ignore[attr-defined]
    (note,) = lost_characters_note()
    assert all(part in note for part in ("cp1252", "3 characters", "PYTHONIOENCODING=utf-8"))
    write_any_text()
    assert not lost_characters_note()


@pytest.mark.parametrize(
    ("platform", "chosen", "encoding"),
    [
        ("win32", "", "utf-8"),
        ("win32", "cp1252", "cp1252"),
        ("linux", "", "cp1252"),
    ],
)
def test_redirected_output_is_utf8_on_windows_unless_an_encoding_is_chosen(
    platform: str, chosen: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if chosen:
        monkeypatch.setenv("PYTHONIOENCODING", chosen)
    write_any_text()
    assert written.encoding == encoding
