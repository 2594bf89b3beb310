"""Divide an evaluation among the processes of one training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

from petransfer.data.encoding import Encoded
from petransfer.data.task import Example
from petransfer.evaluation.exact_match import AUDITED, Evaluation, evaluate
from petransfer.evaluation.one_pass import ScoredExample
from petransfer.evaluation.semantic_match import SemanticMatches
from petransfer.models.loading import Loaded
from petransfer.training.distributed import needs_all_processes


def evaluate_distributed(
    model: torch.nn.Module, loaded: Loaded, examples: Sequence[Example], encoded: Sequence[Encoded], **options: Any
) -> Evaluation:
    """Return the result of `evaluate` on all examples, in every process. `options` go to `evaluate`."""
    # If FSDP splits the model's tensors, every layer waits for all processes, and the number of generation steps is not
    # known in advance. All processes then do the complete evaluation. All take the same number of steps, because GPUs
    # of one kind round in the same way.
    if not distributed.is_initialized() or distributed.get_world_size() == 1 or needs_all_processes(model):
        return evaluate(model, loaded, examples, encoded, **options)
    count, index = distributed.get_world_size(), distributed.get_rank()
    own = Evaluation((), 0, 0, 0)
    mine = range(index, len(examples), count)
    if mine:
        audited = len(range(index, AUDITED, count))
        parts_of = [examples[at] for at in mine], [encoded[at] for at in mine]
        own = evaluate(model, loaded, *parts_of, audited=audited, seed=index, **options)
    parts: list[Evaluation | None] = [None] * count
    distributed.all_gather_object(parts, own)
    return merge_evaluations([part for part in parts if part is not None])


def merge_evaluations(parts: Sequence[Evaluation]) -> Evaluation:
    """Combine the evaluations of n processes, where process i evaluated examples i, i + n, i + 2n, ...

    Args:
        parts: the evaluations in the order of the processes.
    """
    total = sum(len(part.scored) for part in parts)
    scored = tuple(parts[at % len(parts)].scored[at // len(parts)] for at in range(total))
    return Evaluation(
        scored=scored,
        near_ties=sum(part.near_ties for part in parts),
        audited=sum(part.audited for part in parts),
        disagreements=sum(part.disagreements for part in parts),
        semantic=_joined_matches(scored, [part.semantic for part in parts if part.semantic]),
        by_generation=any(part.by_generation for part in parts),
    )


def _joined_matches(scored: Sequence[ScoredExample], parts: Sequence[SemanticMatches]) -> SemanticMatches | None:
    if not parts:
        return None
    same = tuple(bool(row.semantic_correct) for row in scored if not row.correct)
    return SemanticMatches(same, sum(part.generated for part in parts), sum(part.unfinished for part in parts))
