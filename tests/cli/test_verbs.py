"""The list of verbs is shown without importing their modules. Verbs have help, and their examples can be parsed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from petransfer.cli import app
from petransfer.cli.examples import EXAMPLES
from petransfer.cli.lazy_verbs import VERBS, Verbs, imported, summary
from tests.cli.calls import call


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_shows_the_first_paragraph_of_the_help_of_a_verb(verb: str) -> None:
    own = imported(verb)
    assert summary(verb)
    assert Verbs().commands[verb].help == summary(verb)
    assert " ".join((own.help or "").split("\n\n")[0].split()) == summary(verb)
    assert isinstance(own, TyperGroup) or own.params


@pytest.mark.parametrize(("command", "line"), [(name, line) for name, lines in EXAMPLES.items() for line in lines])
def test_an_example_can_be_parsed_and_is_shown_in_the_help(command: str, line: str) -> None:
    verb, *rest = command.split()
    words = shlex.split(line)
    assert words[:2] == ["petransfer", verb]
    own = imported(verb)
    if isinstance(own, TyperGroup):
        context = typer.Context(own)
        _, own, words = own.resolve_command(context, words[2:])
        assert not rest or own.name == rest[0]
        words = ["", "", *words]
    own.make_context(verb, words[2:])  # raises an error if an option or argument is unknown
    assert line in (imported(verb).epilog or "") or line in (own.epilog or "")


# The verbs whose examples need no download, no study and no GPU. The prediction of memory is slow and has other tests.
_ALONE = ("plan", "recipes show", "recipes cp", "checkpoints ls")


@pytest.mark.parametrize("line", [line for name in _ALONE for line in EXAMPLES[name]])
def test_an_example_that_needs_no_files_can_be_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.partition(" --card")[0])[1:]
    assert call(monkeypatch, *words) == 0, capsys.readouterr().err


def test_help_imports_no_verb_and_no_slow_library() -> None:
    code = (
        "import sys\nfrom petransfer.cli import main\nsys.argv = ['petransfer', '--help']\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "slow = {'torch', 'transformers', 'pydantic', 'yaml', 'numpy', 'pandas', 'filelock'}\n"
        "print(sorted(name for name in sys.modules if name in slow or name.startswith('petransfer.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = ("examples", "lazy_verbs", "log_output", "terminal_text", "usage_errors", "utf8")
    cheap = [f"petransfer.cli.{name}" for name in names]
    assert done.stdout.splitlines()[-1] == str(cheap)
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert all(" ".join(summary(verb).split()[:4]) in shown for verb in VERBS)


@pytest.mark.parametrize("verb", ["", "adapter", "run"])
def test_help_names_no_type_for_options_without_a_value(verb: str) -> None:
    page = CliRunner().invoke(app, [*verb.split(), "--help"]).output
    assert "--help" in page
    assert "<bool>" not in page


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_cuts_no_name_in_a_terminal_of_80_columns(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    own = imported(verb)
    pages = [verb] if not isinstance(own, TyperGroup) else [verb, *(f"{verb} {name}" for name in own.commands)]
    for page in pages:
        text = CliRunner().invoke(app, [*page.split(), "--help"]).output
        assert "--help" in text
        assert "…" not in text


def test_old_names_of_options_work_but_are_not_in_the_help() -> None:
    command = imported("run")
    arguments = ["smoke", "--micro-batch", "8", "--checkpointing"]
    found = command.make_context("run", arguments).params
    assert (found["micro_batch"], found["checkpointing"]) == (8, True)
    page = CliRunner().invoke(app, ["run", "--help"]).output
    assert "--micro-batch-size" in page
    assert not re.search(r"--micro-batch\b(?!-)|--checkpointing\b", page)
