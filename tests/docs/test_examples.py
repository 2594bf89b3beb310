"""The notebooks in examples/ are generated from the scripts, and run from top to bottom in little CPU time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.calls import call
from tests.report.made import draw_nothing

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 40  # CPU time of one notebook, so that three notebooks take at most two minutes
PLAIN_RUN = subprocess.run
sys.path.insert(0, str(ROOT / "examples"))

nbformat = pytest.importorskip("nbformat")
from make_notebooks import SCRIPTS, notebook_of  # noqa: E402


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_generated_from_the_script(script: Path) -> None:
    assert script.with_suffix(".ipynb").read_text(encoding="utf-8") == notebook_of(script)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_code_of_the_notebook_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cells run in this process, with a tenth of the training steps and without plots."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", _run_here)
    draw_nothing(monkeypatch)
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    names: dict[str, Any] = {}
    for cell in notebook.cells:
        if cell["cell_type"] == "code":
            code = re.sub(r"\b(steps\W+)(\d+)", lambda found: f"{found[1]}{int(found[2]) // 10}", cell["source"])
            exec(compile(code, f"{script.stem}.ipynb", "exec"), names)
    assert capsys.readouterr().out


def _run_here(command: list[str], **options: Any) -> Any:
    """Replace `subprocess.run`: petransfer's command line is called in this process."""
    if command[0] != "petransfer":
        return PLAIN_RUN(command, **options)
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, *command[1:]) == 0
    return None


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_runs_within_its_cpu_time(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    resource = pytest.importorskip("resource")
    before = _seconds_of_children(resource)
    client.execute()
    used = _seconds_of_children(resource) - before
    print(f"{script.stem}: {used:.1f} s of CPU time")
    assert used < MOST_SECONDS
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


def _seconds_of_children(resource: Any) -> float:
    """Return the CPU time of all child processes that have ended, such as a notebook's kernel."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(used.ru_utime + used.ru_stime)
