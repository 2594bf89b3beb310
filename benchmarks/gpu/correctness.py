"""Stage a: run the tests marked `gpu`, and record the result of each test as soon as it has ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.records import Records
from benchmarks.gpu.stages import Task

ROOT = Path(__file__).parents[2]
# The test files, the most informative ones first.
FILES = (
    "tests/gpu/test_cuda.py",
    "tests/memory/test_fit.py",
    "tests/training/test_loop.py",
    "tests/benchmarks/test_bench.py",
    "tests/benchmarks/test_bench_speed.py",
)


class _Recorder:
    """A pytest plugin that records the outcome, the seconds and the error message of each test."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def pytest_collectreport(self, report: Any) -> None:
        """Record a file that pytest could not import, for example because a package is missing. Called by pytest."""
        if report.outcome == "failed":
            self._records.add(test=report.nodeid, outcome="not collected", error=report.longreprtext[-600:])

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record the result of a test. Called by pytest after the set-up, the call and the tear-down of every test."""
        if report.when != "call" and not (report.when == "setup" and report.outcome != "passed"):
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        error = f"{crash.path}:{crash.lineno}: {crash.message}"[:600] if crash else None
        self._records.add(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), error=error)


def run(records: Records, task: Task) -> None:
    """Run the tests marked `gpu`. A rehearsal runs only two of them, on the CPU."""
    chosen = [
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",  # the options in pyproject.toml need pytest-xdist
        "-q",
        "--strict-markers",
        "--continue-on-collection-errors",
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    if task.rehearse:
        os.environ["PETRANSFER_GPU_TESTS"] = "cpu"
        files = [str(ROOT / FILES[0])]
        chosen += ["-k", "losses_are_those and full or running_out_of_memory"]
    else:
        files = [str(ROOT / name) for name in FILES]
    try:
        code = pytest.main([*chosen, *files], plugins=[_Recorder(records)])
    finally:
        os.environ.pop("PETRANSFER_GPU_TESTS", None)
    outcomes = [row["outcome"] for row in records.rows]
    records.add(what="all", **{outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}, code=int(code))
