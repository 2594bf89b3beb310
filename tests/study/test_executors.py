"""Workers on one machine: killed workers are replaced, a run that kills workers fails, and no run is executed twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from petransfer.study.folders import StudyFolder
from petransfer.study.local_executor import execute
from tests.study.forked_workers import fork_workers
from tests.study.jobs import Job, Named


def _marks(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()}


def test_a_run_is_restarted_until_three_workers_are_killed_at_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    (tmp_path / "marks").mkdir()
    study, job = StudyFolder(tmp_path / "study"), Job(tmp_path / "marks")
    kinds = ["dies", "dies once", "gets on and dies", "mistake", "end", "end"]
    cells = [Named(f"run{at}", does) for at, does in enumerate(kinds)]
    outcome = execute(cells, study, job, workers=2, threads=1, tick=lambda: None)
    marks = _marks(job.marks)
    # the other worker does not try a failed run again, even on a busy machine
    assert marks == {"run0": 3, "run1": 2, "run2": 4, "run3": 1, "run4": 1, "run5": 1}
    assert [study.run(cell.run_id).status() for cell in cells] == ["failed", "done", "done", "failed", "done", "done"]
    assert "3 workers were killed at the same training state (SIGKILL)" in outcome.failures["run0"]
    assert outcome.failures["run3"] == "the user's"
    assert not outcome.interrupted


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_run_is_executed_again_in_the_next_call(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    (tmp_path / "marks").mkdir()
    study, job = StudyFolder(tmp_path / "study"), Job(tmp_path / "marks")
    cells = [Named("a", "mistake"), Named("b")]
    for _ in range(2):
        execute(cells, study, job, workers=workers, threads=1, tick=lambda: None)
    assert _marks(job.marks) == {"a": 2, "b": 1}


def test_a_script_without_a_main_guard_starts_each_run_once(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from petransfer.study.folders import StudyFolder\n"
        "from petransfer.study.local_executor import execute\n"
        "from tests.study.jobs import Job, Named\n"
        f"here = Path({str(tmp_path)!r})\n"
        "cells = [Named('a'), Named('b')]\n"
        "outcome = execute(cells, StudyFolder(here / 'study'), Job(here / 'marks'), 2, 1, lambda: None)\n"
        "print(outcome.failures)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{}\n", "")
    assert _marks(tmp_path / "marks") == {"a": 1, "b": 1}


@pytest.mark.parametrize("begun", [False, True])
def test_workers_of_a_killed_command_stop(begun: bool, tmp_path: Path) -> None:
    """The command is killed before or after its workers start a run. No other process would end the workers."""
    (tmp_path / "marks").mkdir()
    code = (
        "import sys; from pathlib import Path; from petransfer.study.folders import StudyFolder\n"
        "from petransfer.study.local_executor import execute; from tests.study.jobs import Job, Named\n"
        "if __name__ == '__main__':\n"
        "    cells = [Named(f'run{at}', 'waits') for at in range(4)]\n"
        "    execute(cells, StudyFolder(Path('study')), Job(Path('marks')), 2, 1, lambda: None)\n"
    )
    (tmp_path / "command.py").write_text(code)
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "command.py"], cwd=tmp_path, env={"PYTHONPATH": str(root)}) as command:
        _until(lambda: len(psutil.Process(command.pid).children()) >= 2)
        if begun:
            _until(lambda: len(_marks(tmp_path / "marks")) == 2)
        workers = psutil.Process(command.pid).children(recursive=True)
        command.kill()
        command.wait()
    _, left = psutil.wait_procs(workers, timeout=120)
    assert not left


def _until(true: Callable[[], bool]) -> None:
    for _ in range(2400):
        if true():
            return
        time.sleep(0.05)
    raise TimeoutError
