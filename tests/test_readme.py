"""Test the README and the documentation: length, generated tables, links and commands."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.generated_tables import PAGES, RESULTS, ROOT, claims, updated

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_generated_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == updated(text), "run: python -m tests.generated_tables"


def test_a_wrong_table_is_replaced() -> None:
    head = "<!-- claims -->\n"
    right = updated(head)
    assert right.count("\n") > 6
    assert updated(f"{head}| claim | +99.9 |\n\nmore") == f"{right}\nmore"


def test_the_table_of_claims_has_a_column_for_each_benchmark_with_all_effects(tmp_path: Path) -> None:
    """For COGS, the lexical categories are used. An effect with one seed has no interval."""
    for study, categories in (("transfer-scan", None), ("transfer-cogs", "lexical")):
        content = json.loads((RESULTS / "transfer-scan" / "effects.json").read_text(encoding="utf-8"))
        for effect in content["effects"] if categories else []:
            effect |= {"name": f"{effect['name']} ({categories})", "categories": categories}
            effect |= {"interval": None, "seeds": [1, 1], "verdict": "inconclusive"}
        (tmp_path / study).mkdir()
        (tmp_path / study / "effects.json").write_text(json.dumps(content), encoding="utf-8")
    head, _, english, *_ = claims(tmp_path).splitlines()
    assert head.split(" | ")[1:] == ["SCAN, LoRA", "SCAN, full fine-tuning", "COGS, LoRA", "COGS, full fine-tuning |"]
    assert english.endswith("inconclusive (one seed) |")
    removed = ("code-scratch (lexical)", "full")
    content["effects"] = [one for one in content["effects"] if (one["name"], one["method"].split(" ")[0]) != removed]
    (tmp_path / "transfer-cogs" / "effects.json").write_text(json.dumps(content), encoding="utf-8")
    assert claims(tmp_path).splitlines()[0].split(" | ")[1:] == ["SCAN, LoRA", "SCAN, full fine-tuning", "COGS, LoRA |"]


@pytest.mark.parametrize(("key", "value"), [("difference", 99.9), ("verdict", "holds"), ("interval", None)])
def test_the_table_of_claims_changes_with_the_effects(key: str, value: Any, tmp_path: Path) -> None:
    content = json.loads((RESULTS / "transfer-scan" / "effects.json").read_text(encoding="utf-8"))
    (tmp_path / "transfer-scan").mkdir()
    tables = []
    for changes in ({}, {key: value}):
        effect = next(effect for effect in content["effects"] if effect["name"] == "code-scratch" and effect["method"])
        assert not changes or effect[key] != value
        effect |= changes
        (tmp_path / "transfer-scan" / "effects.json").write_text(json.dumps(content), encoding="utf-8")
        tables.append(claims(tmp_path).splitlines())
    changed = [line for line, before in zip(*reversed(tables), strict=True) if line != before]
    assert [line.split(":")[0] for line in changed] == ["| code helps"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_relative_link_and_picture_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_run_command_uses_the_recipe_lora_scan() -> None:
    (command,) = re.findall(r"<!-- run-command -->\n```bash\n(.*)\n```", README)
    assert command.endswith("petransfer run --recipe lora-scan")


def test_ci_runs_the_test_command() -> None:
    (command,) = re.findall(r"<!-- test-command -->\n```bash\n(.*)\n```", README)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    sed = re.search(r"command=\$\((sed .*)\)", script)
    assert sed
    found = subprocess.run(["bash", "-c", sed[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert found == command
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert tool in command


def test_the_map_of_the_contributing_guide_names_files_that_exist() -> None:
    named = re.findall(r"`(petransfer/[\w/]+(?:\.py)?/?)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(named) >= 10
    assert not [name for name in named if not (ROOT / name).exists()]
