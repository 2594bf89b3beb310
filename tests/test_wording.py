"""Test the wording of messages: commands are between backquotes, and `quantise` has one spelling."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from petransfer.cli.lazy_verbs import VERBS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "petransfer").rglob("*.py"))
# Files with code and commands for a page or for --help, where each command is on a separate line.
WHOLE_COMMANDS = {"cli/examples.py", "sharing/usage_code.py", "report/page.py", "report/run_page.py"}
# A command that is not at the beginning of a text or of a line, and not after a backquote.
LOOSE = re.compile(rf"(?<=[^\s`\w] )(petransfer ({'|'.join(VERBS)})\b|pip install)")
# The spelling `quantiz` in a word that is not part of a name, path or call.
SPELLING = re.compile(r"(?<![\w/`\"'.])(?:un|de)?quantiz(?:e|ed|es|ing|ations?)\b(?![\w(/=`\"'_]|\.\w)", re.I)


def messages(path: Path) -> Iterator[str]:
    """Yield all strings of a file except docstrings. A value inside an f-string is written as `{}`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_commands_in_messages_are_between_backquotes() -> None:
    """When petransfer breaks lines for the terminal, it keeps text between backquotes on one line."""
    found = [
        (path.name, text)
        for path in SOURCES
        if path.relative_to(ROOT / "petransfer").as_posix() not in WHOLE_COMMANDS
        for text in messages(path)
        if LOOSE.search(text)
    ]
    assert found == []


def test_a_command_without_backquotes_is_found() -> None:
    assert LOOSE.search("no run is finished; petransfer status results/a")
    assert LOOSE.search("not installed: pip install x")
    assert not LOOSE.search("run `petransfer status results/a`")
    assert not LOOSE.search("  petransfer status results/a")


def test_quantised_is_spelt_in_one_way() -> None:
    """Names in code keep the spelling of the libraries, as in `quantization_config`."""
    found = []
    for path in [*SOURCES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            found += [(path.name, word) for word in SPELLING.findall(text)]
            continue
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                found += [(path.name, word) for word in SPELLING.findall(token.string)]
    assert found == []
