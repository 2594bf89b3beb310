"""Test registries: they find entries in petransfer and in other packages, and report broken packages in one line."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from petransfer.errors import UserError
from petransfer.registries import Registry


@dataclass(frozen=True)
class Fruit:
    """An entry of the registry under test."""

    name: str


BUILT_IN = {
    "__init__": "",
    "apple": "from tests.test_registries import Fruit\nAPPLE = Fruit('apple')\n",
    "pears": "from fruits.apple import APPLE\n"
    "from tests.test_registries import Fruit\nA, B = Fruit('conference'), Fruit('comice')\n",
    "helper": "",
    "_private": "raise AssertionError\n",
}  # fmt: skip
POINTS = """[petransfer.fruits]
plum = trees:PLUM
wrong-kind = trees:TREE
other-name = trees:PLUM
missing = trees:CHERRY
broken = nowhere_at_all:CHERRY
apple = trees:APPLE
"""


@pytest.fixture
def fruits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Fruit]:
    """A registry of a temporary package, together with an installed package that declares entry points."""
    package = tmp_path / "fruits"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "__init__.py").write_text("raise AssertionError\n")
    for name, text in BUILT_IN.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "trees.py").write_text("from tests.test_registries import Fruit\nPLUM, TREE = Fruit('plum'), 3\n")
    installed = tmp_path / "orchard-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: orchard\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("fruits", "fruits.apple", "fruits.pears", "fruits.helper", "trees"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return Registry("fruit", Fruit, "fruits", "petransfer.fruits")


def test_entries_of_the_folder_and_of_installed_packages_are_found(fruits: Registry[Fruit]) -> None:
    assert [fruits[name].name for name in ("apple", "comice", "conference", "plum")] == [
        "apple", "comice", "conference", "plum",
    ]  # fmt: skip
    assert set(fruits) == {"apple", "conference", "comice", "plum", "wrong-kind", "other-name", "missing", "broken"}
    assert len(fruits) == 8
    assert "plum" in fruits
    assert "fig" not in fruits


def test_listing_the_names_does_not_import_other_packages(fruits: Registry[Fruit]) -> None:
    assert "fruits.apple" not in sys.modules
    assert "plum" in list(fruits)
    assert "trees" not in sys.modules


def test_an_entry_of_another_package_does_not_replace_a_built_in_entry(
    fruits: Registry[Fruit], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert fruits["apple"] is sys.modules["fruits.apple"].APPLE
        assert len(list(fruits)) == 8
    assert "orchard: fruit 'apple' is ignored" in caplog.text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("plumm", ["unknown fruit 'plumm'", "did you mean 'plum'"]),
        ("wrong-kind", ["'wrong-kind'", "orchard", "trees:TREE", "int", "Fruit"]),
        ("other-name", ["'other-name'", "orchard", "'plum'"]),
        ("missing", ["'missing'", "orchard", "trees:CHERRY", "AttributeError"]),
        ("broken", ["'broken'", "orchard", "nowhere_at_all:CHERRY", "ModuleNotFoundError", "repair or remove it"]),
    ],
)
def test_errors_are_one_line_and_name_the_package(fruits: Registry[Fruit], name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        fruits.lookup(name)
    assert all(part in str(refused.value) for part in parts), refused.value
    assert "\n" not in str(refused.value)
