"""Compute the metrics of a recipe other than exact match, on one part of a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petransfer.data.encoding import Encoded
from petransfer.data.task import SplitData
from petransfer.errors import UserError
from petransfer.evaluation.generation import generate, room
from petransfer.evaluation.label_scoring import choose_labels
from petransfer.evaluation.metric_checks import declared
from petransfer.models.loading import Loaded
from petransfer.recipe.metrics import Metric
from petransfer.recipe.run_spec import TaskSpec

# Generated texts may have this many times as many tokens as the longest target.
SLACK = 1.5


@dataclass(frozen=True)
class Measured:
    """The scores of metrics on some examples.

    scores: each score by its name, 0 to 100.
    answers: the predicted label or text for each example; None if no metric needed predictions.
    """

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
    """Compute the metrics that `task` names, except exact match, on one part (`dev` or `test`); see `measure_rows`."""
    targets = [example.target for example in getattr(data, part)]
    return measure_rows(model, loaded, task.metrics, targets, data.labels, encoded)


def measure_rows(
    model: torch.nn.Module,
    loaded: Loaded,
    names: Sequence[str],
    targets: Sequence[str],
    labels: Sequence[str],
    encoded: Sequence[Encoded],
) -> Measured:
    """Compute metrics on some examples.

    For label metrics, each prediction is one of the labels. For text metrics, it is a generated text. If both kinds are
    requested, `answers` are the generated texts.

    Args:
        names: the names of the metrics; exact match is left out.
        targets: the target of each example.
        labels: the closed set of targets, for label metrics.
        encoded: the token ids of each example.

    Raises:
        UserError: a metric does not return a finite number for each score that it declares.
    """
    metrics = declared(names)
    scores: dict[str, float] = {}
    answers = None
    if any(metric.of_labels for metric in metrics):
        answers = choose_labels(model, loaded, encoded, labels)
        scores |= _scored([metric for metric in metrics if metric.of_labels], answers, targets)
    if any(not metric.of_labels for metric in metrics):
        limit = _longest_answer(model, loaded, encoded)
        answers = generate(model, loaded, [row.input_ids for row in encoded], limit)
        scores |= _scored([metric for metric in metrics if not metric.of_labels], answers, targets)
    return Measured(scores, answers)


def _scored(metrics: Sequence[Metric], predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in metrics:
        figures = {name: float(value) for name, value in metric.score(predictions, targets).items()}
        if figures.keys() != metric.headings.keys() or not all(map(math.isfinite, figures.values())):
            raise UserError(
                f"the metric {metric.name} returned {figures}, not a finite figure for each of "
                f"{', '.join(metric.headings)}; repair the package that declares it"
            )
        found |= figures
    return found


def _longest_answer(model: torch.nn.Module, loaded: Loaded, encoded: Sequence[Encoded]) -> int:
    """Return the length limit of generated texts in tokens.

    The limit depends on the longest target, and on the positions that the model has left after the longest input.
    """
    wanted = int(SLACK * max(len(row.target_ids) for row in encoded)) + 8
    left = room(model, loaded, max(len(row.input_ids) for row in encoded))
    return wanted if left is None else min(wanted, left)
