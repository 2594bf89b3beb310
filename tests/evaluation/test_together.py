"""Combine the evaluations of several processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from petransfer.evaluation.distributed import merge_evaluations
from petransfer.evaluation.exact_match import Evaluation, ScoredExample
from petransfer.evaluation.semantic_match import SemanticMatches


def _scored(index: int, correct: bool, means: bool | None = None) -> ScoredExample:
    return ScoredExample(index, "c", correct, 1.0 if correct else -1.0, -1.0, 3, 3, semantic_correct=means)


@pytest.mark.parametrize(("total", "count"), [(7, 3), (6, 2), (2, 3), (1, 4)])
def test_combined_examples_are_in_their_original_order(total: int, count: int) -> None:
    rows = [_scored(index, index % 3 == 0) for index in range(total)]
    parts = [Evaluation(tuple(rows[at::count]), near_ties=at, audited=1, disagreements=0) for at in range(count)]
    whole = merge_evaluations(parts)
    assert whole.scored == tuple(rows)
    assert (whole.near_ties, whole.audited, whole.semantic) == (sum(range(count)), count, None)
    assert not whole.by_generation
    assert merge_evaluations([replace(part, by_generation=True) for part in parts]).by_generation


def test_semantic_matches_are_combined() -> None:
    rows = [_scored(0, True, True), _scored(1, False, True), _scored(2, False, False), _scored(3, False, True)]
    parts = [
        Evaluation((rows[0], rows[2]), 0, 0, 0, SemanticMatches((False,), generated=1, unfinished=1)),
        Evaluation((rows[1], rows[3]), 0, 0, 0, SemanticMatches((True, True), generated=2, unfinished=0)),
    ]
    assert merge_evaluations(parts).semantic == SemanticMatches((True, False, True), generated=3, unfinished=1)
