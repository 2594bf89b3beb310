"""Execute the code blocks of the documentation, except blocks below a line `<!-- not run by tests: reason -->`.

Commands that are not executed are still parsed, so that a renamed option is detected. The blocks of a page run in one
folder, from top to bottom. Blocks in the language `text` are not code but outputs, data and folders.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from petransfer.cli import main
from petransfer.cli.lazy_verbs import imported
from petransfer.recipe.loading import load_recipe
from petransfer.study.grid import expand

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages whose blocks take more than a few seconds of computing time; the others are run by the default suite.
LONG = {
    "big-model-small-card", "export", "first-adapter", "memory-planner", "one-pass-exact-match", "resume-and-clusters",
    "share-an-adapter", "trackers", "your-own-study",
}  # fmt: skip
BLOCK = re.compile(
    r"(?:^<!-- not run by tests: (?P<why>.+?) -->\n)?(?:^<!-- [\w-]+ -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
# A fragment of a recipe is added to this recipe before it is validated.
RECIPE: dict[str, Any] = {
    "name": "fragment",
    "task": {"name": "scan", "splits": ["opposite_right"]},
    "arms": ["english"],
    "methods": [{"name": "lora", "bits": 32}],
    "train": {"steps": 10, "learning_rate": 1e-3},
}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    runs: bool


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(found["language"], found["text"], found["why"] is None) for found in BLOCK.finditer(text)]


def commands_of(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block; comments are left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_runnable(page: Path) -> bool:
    """Return whether a page has a block that is executed and not only parsed."""
    return any(block.runs and block.language in {"bash", "python"} for block in blocks_of(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_has_a_language_that_is_checked(page: Path) -> None:
    blocks = blocks_of(page)
    assert {block.language for block in blocks} <= {"bash", "python", "yaml", "toml", "text"}
    assert len(blocks) == page.read_text(encoding="utf-8").count("\n```") / 2, "a block is indented or not closed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_can_be_parsed(page: Path) -> None:
    for block in blocks_of(page):
        for words in commands_of(block.text) if block.language == "bash" else []:
            if "petransfer" not in words or "venv" in words:
                assert not block.runs, f"{page.name}: mark the block of {words[0]} as not run"
                continue
            verb, *rest = words[words.index("petransfer") + 1 :]
            imported(verb).make_context(verb, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_recipe_is_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks_of(page):
        if block.language != "yaml":
            continue
        content = yaml.safe_load(block.text)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content if "name" in content else RECIPE | content))
        recipe = load_recipe(str(path))
        if recipe.task.name != "lines" and "./" not in block.text:  # other recipes need the user's files
            assert expand(recipe)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_and_toml_block_has_correct_syntax(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.text, page.name, "exec")
        if block.language == "toml":
            assert tomllib.loads(block.text)


RUNNABLE = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else [])
    for page in PAGES
    if is_runnable(page)
]


def test_every_page_in_long_has_blocks_that_are_executed() -> None:
    assert {param.id for param in RUNNABLE} >= LONG


@pytest.mark.parametrize("page", RUNNABLE)
def test_every_block_can_be_executed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if not block.runs:
            continue
        if block.language == "python":
            exec(compile(block.text, f"{page.name}", "exec"), names)
        for words in commands_of(block.text) if block.language == "bash" else []:
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code, f"{page.name}: {shlex.join(words)}"
