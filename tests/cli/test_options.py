"""Options that several verbs share: lists, empty values, options before the verb, and paths with a tilde."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import petransfer
import petransfer.cli
from petransfer.cli.options import parse_seeds
from petransfer.errors import UserError
from tests.cli.calls import call, refused


@pytest.mark.parametrize("text", ["5-3", "0,5-3", "0-2,9-8"])
def test_a_descending_range_of_seeds_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--seeds .*range \d-\d is empty"):
        parse_seeds(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "smoke", "--arms", ""),
        ("run", "smoke", "--seeds", ""),
        ("run", "smoke", "--shard", ""),
        ("plan", "smoke", "--arms", "english,"),
        ("sweep", "smoke", "--learning-rates", ""),
        ("sweep", "smoke", "--factors", ""),
        ("sweep", "smoke", "--shard", ""),
        ("pretrain", "--arms", ""),
        ("pretrain", "--sizes", ""),
        ("pretrain", "--seeds", ""),
    ],
    ids=" ".join,
)
def test_an_empty_list_is_refused_and_does_not_mean_the_default(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If an empty list meant the default, an unset shell variable would start every run of a study."""
    monkeypatch.chdir(tmp_path)
    refused(monkeypatch, capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "takes_part"),
    [
        (("train", "a", "b"), True),
        (("--debug", "train", "a", "b"), True),
        (("--quiet", "--verbose", "sweep"), True),
        (("run", "--debug"), True),
        (("--debug", "status", "run"), False),
        (("report", "run"), False),
        ((), False),
    ],
)
def test_only_verbs_that_share_runs_are_executed_by_every_process(
    arguments: tuple[str, ...], takes_part: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another process exits at a verb that shares runs, the leading process waits for it forever."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    calls = []

    def record(application: object, given: list[str]) -> None:
        calls.append(given)
        raise SystemExit(0)

    monkeypatch.setattr(petransfer.cli, "call", record)
    assert call(monkeypatch, *arguments) == 0
    assert calls == ([[*arguments]] if takes_part else [])


def test_a_tilde_at_the_start_of_a_path_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell expands `--out ~/x`, but not `--out=~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "recipes", "cp", "smoke", "~/mine.yaml") == 0
    assert (tmp_path / "mine.yaml").is_file()
    assert not (tmp_path / "~").exists()
    for arguments in (("plan", "smoke", "--out=~/mine.yaml"), ("status", "~/gone")):
        assert str(tmp_path) in refused(monkeypatch, capsys, *arguments)


def test_messages_and_help_texts_use_the_current_name_of_an_option() -> None:
    """An old name such as --lr still works, but readers of the help must find the option that a message names."""
    texts: list[tuple[str, str]] = []
    old: set[str] = set()
    for path in sorted(Path(petransfer.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append((path.name, node.value))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option":
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                old.update([name for name in names if str(name).startswith("--")][1:])
    assert {"--lr", "--rates", "--batch", "--checkpointing", "--micro-batch"} <= old
    word = re.compile(rf"(?<![\w-])(?:{'|'.join(old)})(?![\w-])")
    assert not [(name, text) for name, text in texts if word.search(text) and text not in old]
