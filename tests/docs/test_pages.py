"""The pages agree with the program: error messages exist, extensions are found, and terms are defined."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

from petransfer.data.task_registry import TASKS, RegisteredTask
from petransfer.effects.kind import KINDS, EffectKind
from petransfer.recipe.methods import METHODS, Method
from petransfer.recipe.metrics import METRICS, Metric
from petransfer.registries import Registry
from tests.docs.test_code_blocks import ROOT, blocks_of

DOCS = ROOT / "docs"
JOINT = re.compile(r'"\s*\n\s*f?"')  # between two lines of one string in the source


@pytest.mark.parametrize("page", ["troubleshooting", "chat-data"])
def test_every_error_message_still_exists(page: str) -> None:
    source = JOINT.sub("", "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "petransfer").rglob("*.py")))
    table = (DOCS / "how-to" / f"{page}.md").read_text(encoding="utf-8").split("| message contains |")[1]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    assert len(messages) >= (10 if page == "troubleshooting" else 3)
    assert not [message for message in messages if message not in source]


def _blocks_without_a_blank_line_before(text: str) -> list[str]:
    """Return the first lines of tables, lists, headings and code blocks that follow a line of text directly."""
    found, before, in_code = [], "", False
    for line in text.splitlines():
        fence = line.startswith("```")
        begins = (fence or bool(re.match(r"\||- |\d+\. |#+ ", line))) and not in_code
        goes_on = before == "" or before.startswith(("<!--", "  ")) or re.match(r"\||- |\d+\. ", before)
        if begins and not goes_on:
            found.append(line)
        in_code ^= fence
        before = line
    return found


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_a_blank_line_comes_before_every_table_and_list(page: Path) -> None:
    """Without the blank line, GitHub shows a table, but the documentation site shows the source of the table."""
    assert not _blocks_without_a_blank_line_before(page.read_text(encoding="utf-8"))


def test_a_table_directly_after_a_sentence_is_found() -> None:
    text = "A sentence:\n| a | b |\n| --- | --- |\n\n- one\n- two\n\n```\nx\n- y\n```"
    assert _blocks_without_a_blank_line_before(text) == ["| a | b |"]


def test_the_glossary_defines_the_terms_of_a_study() -> None:
    words = re.findall(r"^\| ([\w ()-]+?) \|", (DOCS / "reference" / "glossary.md").read_text(encoding="utf-8"), re.M)
    assert {"arm", "effect", "verdict", "split", "seed", "retention"} <= set(words)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [page for page in DOCS.rglob("*.md") if f" {page.relative_to(DOCS).as_posix()}\n" not in navigation]


def test_the_package_of_the_extension_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files and entry points of the page are installed as by pip. Every registry finds its entry by name."""
    page = DOCS / "how-to" / "extend.md"
    (points,) = (tomllib.loads(block.text) for block in blocks_of(page) if block.language == "toml")
    files = re.findall(r"^`(my_\w+)\.py`", page.read_text(encoding="utf-8"), re.M)
    python = [block.text for block in blocks_of(page) if block.language == "python"]
    for name, text in zip(files, python, strict=True):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    sections = points["project"]["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in of.items()) for group, of in sections]
    (installed / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    registries = [(METRICS, Metric), (TASKS, RegisteredTask), (METHODS, Method), (KINDS, EffectKind)]
    for (registry, kind), (group, entries) in zip(registries, sections, strict=True):
        (name,) = entries
        assert registry.group == group
        found = Registry(registry.noun, kind, registry.package, group).lookup(name)
        assert found.name == name


def test_the_recipe_page_has_a_meaning_for_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(DOCS))
    page = importlib.import_module("generate_reference").recipe_page()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert not [row[0] for row in rows if len(row) != 4 or not row[3].removesuffix("|").strip()]
    assert "## method" in page
    assert "margin: " not in page, "a key with its meaning must be a row of the table, not a part of the text"
