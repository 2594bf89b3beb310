"""Invariant 3 with SIGKILL at random moments: a short version of kill_and_resume."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.invariants.kill_and_resume import WAYS, main, until


def test_killed_runs_resume_with_the_same_result() -> None:
    assert main(kills=2, seed=1, steps=20, forked=True)["kills"] == 2


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
