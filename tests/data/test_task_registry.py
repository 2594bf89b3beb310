"""The registry of tasks finds the built-in tasks and the tasks of other installed packages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from petransfer.cli import main
from petransfer.data import TASKS, load_task, task_info, task_title
from petransfer.errors import UserError
from petransfer.registries import Registry

REVERSE = '''
from dataclasses import dataclass
from pathlib import Path

from petransfer.data import Example, RegisteredTask, SplitData


@dataclass(frozen=True)
class ReverseTask:
    """Reverse the words of a sentence."""

    data_dir: Path | None = None
    rows: int = 20
    name = "reverse"
    splits = ("all",)

    def train_size(self, split):
        return self.rows

    def longest(self, split):
        return (20, 20)

    def load(self, split):
        words = ("walk", "run", "jump", "look")
        inputs = [f"{words[n % 4]} {words[n // 4 % 4]}" for n in range(self.rows + 4)]
        rows = [Example(n, text, " ".join(reversed(text.split())), "all") for n, text in enumerate(inputs)]
        return SplitData(rows[: self.rows], rows[self.rows :][:2], rows[self.rows :][2:])


TASK = RegisteredTask("reverse", ReverseTask, title="Reversed words", licence="cc0-1.0", languages=("en",))
'''


@pytest.fixture
def reverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package with the task `reverse`, as pip would: a module and its dist-info folder."""
    site = tmp_path / "site-packages"
    info = site / "reversed_words-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "reversed_words.py").write_text(REVERSE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reversed-words\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[petransfer.tasks]\nreverse = reversed_words:TASK\n")
    monkeypatch.syspath_prepend(str(site))
    _forget_packages(TASKS)
    yield site
    monkeypatch.undo()
    sys.modules.pop("reversed_words", None)
    _forget_packages(TASKS)


def _forget_packages(registry: Registry[object] | object) -> None:
    """Clear the cache of a registry, which lists the installed packages only once per process."""
    for cached in ("_installed", "_loaded"):
        vars(registry).pop(cached, None)


def test_the_built_in_tasks_are_found_with_their_metadata() -> None:
    assert {"scan", "scan-mcd", "cogs", "cogs-variable-free", "recogs", "slog", "lines"} <= set(TASKS)
    for name, task in TASKS.items():
        if not task.published:
            continue
        assert task.licence
        assert task.citation
        assert load_task(name).splits
        assert set(task.category_groups) == set(task.category_titles)
    assert [name for name, task in TASKS.items() if task.text_is_private] == ["slog"]


def test_an_unknown_task_cannot_be_loaded_and_has_its_name_as_title() -> None:
    with pytest.raises(UserError, match=r"unknown task 'scn'.*'scan'"):
        load_task("scn")
    assert task_info("gone") is None
    assert task_title("gone") == "gone"
    assert task_title("recogs") == "ReCOGS"


def test_the_task_of_another_package_is_trained_and_scored(
    reverse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TASKS["reverse"].title == "Reversed words"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        "name: reversed\n"
        "task: {name: reverse, splits: [all], options: {rows: 12}}\n"
        "family: nano\narms: [english]\nmethods: [{name: lora, rank: 2, bits: 32}]\nseeds: [0]\n"
        "train: {steps: 2, batch_size: 4, learning_rate: 1.0e-3}\n"
    )
    monkeypatch.setattr(sys, "argv", ["petransfer", "run", "--recipe", "recipe.yaml", "--cpu", "--out", "out"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    (result,) = (tmp_path / "out" / "runs").glob("*/result.json")
    assert json.loads(result.read_text())["test"]["examples"] == 2


def test_an_unknown_option_of_a_task_is_refused_with_a_similar_option(reverse: Path) -> None:
    with pytest.raises(UserError, match=r"unknown option of task reverse 'row'.*'rows'"):
        load_task("reverse", row=3)


def test_a_data_folder_among_the_options_of_a_task_is_refused_with_its_right_place() -> None:
    with pytest.raises(UserError, match=r"on the same level as `task:`\. .*: load_task\('scan', 'FOLDER'\)"):
        load_task("scan", data_dir="data")
