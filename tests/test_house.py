"""Test the structure of the package: allowed imports, no circular imports, and no import of torch for reports."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "petransfer"

# The layers of the package (floors), from top to bottom. A folder may import its own files and any folder of a lower
# floor.
FLOORS = (
    {"cli"},
    {"api"},
    {"sharing", "report"},
    {"pretraining", "effects"},
    {"study"},
    {"training", "evaluation", "memory"},
    {"methods"},
    {"models"},
    {"data"},
    {"recipe"},
    {"registries", "json_lines", "user_paths", "wrong_paths", "unreadable_files"},
    {"python_arguments"},
    {"errors", "atomic_files", "plurals", "visible_text"},
    {"similar_names"},
)
# Allowed imports within one floor: (importing folder, imported folder), with the reason.
BESIDE = {
    ("sharing", "report"): "cards are escaped as pages are",
    ("memory", "training"): "the planner simulates the loop's own step",
    ("evaluation", "training"): "scoring uses the loop's batches and its fast CPU path",
}


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(path: Path) -> list[str]:
    """Return the names that a file imports from petransfer, including imports in functions and for type checking."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "petransfer":
            found += (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found += (alias.name for alias in node.names if alias.name.split(".")[0] == "petransfer")
    return found


def floor_of(name: str) -> int | None:
    """Return the number of a module's floor. 0 is the top. None means that the module has no floor."""
    parts = name.split(".")
    return next((at for at, folders in enumerate(FLOORS) if len(parts) > 1 and parts[1] in folders), None)


def test_every_module_has_a_floor() -> None:
    homeless = [name for name in modules() if "." in name and "__main__" not in name and floor_of(name) is None]
    assert not homeless, f"add these to FLOORS: {homeless}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_modules_import_only_from_lower_floors(name: str) -> None:
    here = floor_of(name)
    if here is None:
        pytest.skip("the package's own files import any floor")
    for target in imports(modules()[name]):
        there, folder, other = floor_of(target), name.split(".")[1], [*target.split("."), ""][1]
        if there is None or folder == other or (folder, other) in BESIDE:
            continue
        assert there > here, f"{name} (floor {here}) imports {target} (floor {there})"


def test_there_are_no_circular_imports() -> None:
    """Imports inside functions and for type checking count too, so that the files can be read in one order."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = set()
        for target in imports(path):
            module = target if target in known else target.rpartition(".")[0]
            if module in known and module != name:
                targets.add(module)
        graph[name] = targets
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"circular import: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in state:
            state[name] = 1
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            state[name] = 2

    for name in graph:
        visit(name, ())


def test_importing_modules_for_reports_does_not_import_torch() -> None:
    code = "import sys\n"
    for name in ("petransfer", "petransfer.effects.study_effects", "petransfer.report.page"):
        code += f"import {name}\nif 'torch' in sys.modules: sys.exit('{name} imports torch')\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Features with an interface: the modules that other folders may import, and names that only the feature itself may use.
FEATURES = {
    "training.distributed": ({"training.distributed"}, "FSDPModule|DTensor|fully_shard|is_sharded"),
    "training.stacked": ({"training.stacked"}, "StackedLora|MemberDropout"),
    "training.cpu": (
        {"training.cpu.cpu_step", "training.cpu.processor", "training.cpu.speed"},
        "pairs_of|unpadded_hidden|trained_rows",
    ),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_used_only_through_its_interface(feature: str) -> None:
    interface, inner_names = FEATURES[feature]
    for name, path in modules().items():
        if name.startswith(f"petransfer.{feature}"):
            continue
        for target in imports(path):
            module = target.removeprefix("petransfer.").rpartition(".")[0]
            assert not module.startswith(feature) or module in interface, f"{name} imports {target}"
        found = re.search(rf"\b(?:{inner_names})\b", path.read_text(encoding="utf-8"))
        assert not found, f"{name} uses the name {found[0]}, which belongs to {feature}"


def test_petransfer_does_not_reset_the_state_of_libraries() -> None:
    """Two runs in one process, also together with a user's own Accelerator, must work without `_reset_state`."""
    for name, path in modules().items():
        assert "_reset_state" not in path.read_text(encoding="utf-8"), name


def test_every_folder_with_code_is_in_pyproject_toml() -> None:
    """`packages` in pyproject.toml must list every folder with code. Other folders would not be installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    assert set(settings["packages"]) == folders | {"petransfer._recipes"}


def test_the_examples_in_docstrings_are_right() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
            assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0, module.__name__
