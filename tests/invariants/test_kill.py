"""Invariant 3 with SIGKILL at random moments: a short version of kill_and_resume."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest

import petransfer.study.fine_tune  # noqa: F401 - imported here, so that the forked commands need not import it
from tests.invariants import forked_command
from tests.invariants.kill_and_resume import WAYS, main, until


def test_killed_runs_resume_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands are forks of this process, because a fork server would import torch and other libraries again."""
    monkeypatch.setattr(forked_command, "_CONTEXT", multiprocessing.get_context("fork"))
    assert main(kills=2, seed=1, steps=12, forked=True)["kills"] == 2


def test_rounds_are_repeated_until_there_are_enough_kills() -> None:
    struck: Iterator[int] = iter([2, 2, 1])
    asked: list[int] = []

    def one_round(left: int) -> int:
        asked.append(left)
        return next(struck)

    assert until(5, one_round) == [2, 2, 1]
    assert asked == [5, 3, 1]
    with pytest.raises(AssertionError, match="1 of 2 kills"):
        until(2, lambda left: left - 1)


@pytest.mark.slow
@pytest.mark.parametrize("what", [name for name in WAYS if name != "run"])
def test_killed_runs_resume_with_the_same_result_in_all_other_ways(what: str) -> None:
    if WAYS[what].ray:
        pytest.importorskip("ray")
    assert main(kills=3, seed=1, what=what)["kills"] == 3
