"""The start of a command: closed streams, a deleted folder, Ctrl-C during the imports, and wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from petransfer import __main__ as start
from tests.cli.calls import call, refused


def _in_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = command.replace("petransfer", f'"{sys.executable}" -m petransfer', 1)
    return subprocess.run(["bash", "-c", command], check=False, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_with_closed_streams(closed: str, tmp_path: Path) -> None:
    done = _in_shell(f"petransfer plan smoke {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_deleted_current_folder_gives_one_error_line(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n" * 30)
    done = _in_shell(f"mkdir here; cd here; rmdir ../here; petransfer train nano/english {tmp_path}/x.tsv", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: the current folder was deleted; change to another folder\n"


def test_python_without_docstrings_is_refused_with_one_error_line(tmp_path: Path) -> None:
    done = _in_shell("PYTHONOPTIMIZE=2 petransfer --version", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "unset PYTHONOPTIMIZE" in done.stderr


def test_ctrl_c_during_the_imports_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "petransfer.cli", SimpleNamespace(main=interrupted))
    with pytest.raises(SystemExit) as stop:
        start.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["predict", "x", "--max-new-tokens", "0"], ("--max-new-tokens", "1", "`petransfer predict --help`")),
        (["predict", "x", "--nosuch"], ("--nosuch", "`petransfer predict --help`")),
        (["prdict"], ("prdict", "predict", "`petransfer --help`")),
        (["train", "x"], ("Missing argument", "`petransfer train --help`")),
        (["adapter", "merge"], ("Missing argument", "`petransfer adapter merge --help`")),
        (["train", "x", "y", "\u2013-cpu"], ("\u2013-cpu begins with a long dash", "(two hyphens)")),
        (["train", "x", "y", "—steps", "3"], ("—steps begins with a long dash",)),
        (["report", "a", "b"], ("b was also given; `petransfer report compare A B` compares",)),
        (["status", "a", "b"], ("status accepts only STUDY, but b was also given; call it once for each",)),
        (["doctor", "a"], ("accepts no arguments, but a was also given; leave it out",)),
        (["train", "x", "a.csv", "b c.csv"], ("MODEL DATA", "`mkdir joined; cp a.csv b c.csv joined`")),
        (["train", "x", "y", "--steps", "many"], ("--steps", "valid integer", "`petransfer train --help`")),
    ],
)
def test_wrong_options_and_arguments_give_one_error_line(
    arguments: list[str],
    parts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = refused(monkeypatch, capsys, *arguments)
    for part in parts:
        assert part in error
    assert "petransfer" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "x", "y", "--out", "-"], "- stands for standard input or output, which is not used here; name a"),
        (["status", "-"], "- stands for standard input or output"),
        (["run", "--recipe", "-"], "- stands for standard input or output"),
        (["fit", "-"], "- stands for standard input or output"),
        (["fit", "a--b"], "'a--b' is neither a folder nor a hub id"),
        (["predict", ".a/b", "x"], ".a/b holds no finished adapter or model"),
    ],
)
def test_a_text_that_is_not_a_path_or_hub_id_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message in refused(monkeypatch, capsys, *arguments)


def test_help_and_version_exit_with_code_0_and_no_arguments_with_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["--help"],
        ["train", "--help"],
        ["-h"],
        ["train", "-h"],
        ["report", "compare", "-h"],
        ["--version"],
    ):
        assert call(monkeypatch, *arguments) == 0
        assert capsys.readouterr().err == ""
    assert call(monkeypatch) == 2
    out, written = capsys.readouterr()
    assert "train" in out + written
