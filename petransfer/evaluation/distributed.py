"""An evaluation shared out among the processes of a run; each gets the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

from petransfer.data.encoding import Encoded
from petransfer.data.task import Example
from petransfer.evaluation.exact_match import AUDITED, Evaluation, evaluate
from petransfer.evaluation.one_pass import Scored
from petransfer.evaluation.semantic_match import Meant
from petransfer.models.loading import Loaded
from petransfer.training.distributed.fsdp import is_sharded


def evaluate_together(
    model: torch.nn.Module, loaded: Loaded, examples: Sequence[Example], encoded: Sequence[Encoded], **options: Any
) -> Evaluation:
    """What `evaluate` finds; every process scores, settles and audits each n-th example, and all put it together.

    Where the model's tensors are split, every layer waits for all processes, and how many passes generation takes is
    not known before: all of them do the same whole evaluation. It takes as long as one process would, and longer by the
    gathering, but needs no card that holds the model. They keep in step because the same cards round alike.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1 or is_sharded(model):
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
    return put_together([part for part in parts if part is not None])


def put_together(parts: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of all examples from those of every n-th, the first example in the first part."""
    total = sum(len(part.scored) for part in parts)
    scored = tuple(parts[at % len(parts)].scored[at // len(parts)] for at in range(total))
    return Evaluation(
        scored=scored,
        near_ties=sum(part.near_ties for part in parts),
        audited=sum(part.audited for part in parts),
        disagreements=sum(part.disagreements for part in parts),
        meant=_meant(scored, [part.meant for part in parts if part.meant]),
        by_generation=any(part.by_generation for part in parts),
    )


def _meant(scored: Sequence[Scored], parts: Sequence[Meant]) -> Meant | None:
    if not parts:
        return None
    same = tuple(bool(row.semantic_correct) for row in scored if not row.correct)
    return Meant(same, sum(part.generated for part in parts), sum(part.unfinished for part in parts))
