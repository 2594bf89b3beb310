"""Invariant 3, the hard way: SIGKILL at random moments (a short version of kill_and_resume)."""

from __future__ import annotations

from tests.invariants.kill_and_resume import main


def test_killed_runs_go_on_as_if_nothing_had_happened() -> None:
    assert main(kills=3, seed=1) == 3
