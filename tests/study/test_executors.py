"""Workers on one machine: whoever is killed is begun again, what kills its workers is given up, nothing runs twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from petransfer.study.folders import StudyFolder
from petransfer.study.local_executor import execute
from tests.study.jobs import Job, Named


def _marks(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()}


def test_a_killed_worker_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    study, job = StudyFolder(tmp_path / "study"), Job(tmp_path / "marks")
    kinds = ["dies", "dies once", "gets on and dies", "mistake", "end", "end"]
    cells = [Named(f"run{at}", does) for at, does in enumerate(kinds)]
    outcome = execute(cells, study, job, workers=2, threads=1, tick=lambda: None)
    marks = _marks(job.marks)
    assert marks.pop("run0") in (3, 4)  # the other worker may take it up before the third loss is written down
    # a failure is not tried by the other worker too
    assert marks == {"run1": 2, "run2": 4, "run3": 1, "run4": 1, "run5": 1}
    assert [study.run(cell.run_id).status() for cell in cells] == ["failed", "done", "done", "failed", "done", "done"]
    assert "3 workers were lost at the same step (SIGKILL)" in outcome.failures["run0"]
    assert outcome.failures["run3"] == "the user's"
    assert not outcome.interrupted


@pytest.mark.parametrize("workers", [1, 2])
def test_what_failed_has_another_turn_in_the_next_call(workers: int, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    study, job = StudyFolder(tmp_path / "study"), Job(tmp_path / "marks")
    cells = [Named("a", "mistake"), Named("b")]
    for _ in range(2):
        execute(cells, study, job, workers=workers, threads=1, tick=lambda: None)
    assert _marks(job.marks) == {"a": 2, "b": 1}
