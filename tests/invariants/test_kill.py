"""Invariant 3, the hard way: SIGKILL at random moments (a short version of kill_and_resume)."""

from __future__ import annotations

import pytest

from tests.invariants.kill_and_resume import WAYS, main


def test_killed_runs_go_on_as_if_nothing_had_happened() -> None:
    assert main(kills=2, seed=1, steps=20) == 2


@pytest.mark.slow
@pytest.mark.parametrize("what", [name for name in WAYS if name != "run"])
def test_so_do_those_of_many_processes(what: str) -> None:
    if WAYS[what].ray:
        pytest.importorskip("ray")
    assert main(kills=3, seed=1, what=what) == 3
