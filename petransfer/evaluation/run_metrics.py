"""What a recipe's `metrics` ask for beside exact match, on one part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petransfer.data.encoding import Encoded
from petransfer.data.task import SplitData
from petransfer.evaluation.generation import generate, room
from petransfer.evaluation.label_scoring import choose_labels
from petransfer.evaluation.text_metrics import OF_LABELS, OF_TEXT, label_scores, text_scores
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import TaskSpec

# Targets are at most so many times as long as the longest that is expected; what goes on after that is not heard out.
SLACK = 1.5


@dataclass(frozen=True)
class Measured:
    """scores: by name, 0 to 100. answers: what the model said to every example, None where nothing was asked."""

    scores: dict[str, float]
    answers: list[str] | None = None


def measure(
    model: torch.nn.Module,
    loaded: Loaded,
    task: TaskSpec,
    data: SplitData,
    part: str,
    encoded: Sequence[Encoded],
) -> Measured:
    """The metrics of a task on one part. Where both kinds are asked for, `answers` are those of generation."""
    examples = getattr(data, part)
    targets = [example.target for example in examples] if task.metrics else []
    scores: dict[str, float] = {}
    answers = None
    if any(metric in OF_LABELS for metric in task.metrics):
        answers = choose_labels(model, loaded, encoded, data.labels)
        scores |= label_scores(task.metrics, answers, targets)
    if any(metric in OF_TEXT for metric in task.metrics):
        limit = _longest_answer(model, loaded, encoded)
        answers = generate(model, loaded, [row.input_ids for row in encoded], limit)
        scores |= text_scores(task.metrics, answers, targets)
    return Measured(scores, answers)


def _longest_answer(model: torch.nn.Module, loaded: Loaded, encoded: Sequence[Encoded]) -> int:
    """In pieces, and no more than the model has positions for."""
    wanted = int(SLACK * max(len(row.target_ids) for row in encoded)) + 8
    left = room(model, loaded, max(len(row.input_ids) for row in encoded))
    return wanted if left is None else min(wanted, left)
