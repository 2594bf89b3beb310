"""Compute a recipe's metrics other than exact match."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from petransfer.data.encoding import Encoded
from petransfer.data.task import SplitData
from petransfer.errors import UserError
from petransfer.evaluation.generation import generate
from petransfer.evaluation.label_scoring import choose_labels
from petransfer.evaluation.metric_checks import declared
from petransfer.models.loading import Loaded
from petransfer.recipe.metrics import Metric
from petransfer.recipe.run_spec import TaskSpec

# Generated texts may have this many times as many tokens as the longest target.
SLACK = 1.5


@dataclass(frozen=True)
class MetricScores:
    """The scores of metrics on some examples.

    Attributes:
        scores: each score by name, 0 to 100.
        answers: predicted label or text for each example. None if no metric was computed.
    """

    scores: dict[str, float]
    answers: list[str] | None = None


def compute_metrics(
    model: torch.nn.Module,
    loaded: Loaded,
    task: TaskSpec,
    data: SplitData,
    part: str,
    encoded: Sequence[Encoded],
) -> MetricScores:
    """Compute the metrics of `task`, except exact match, on the part `dev` or `test`."""
    targets = [example.target for example in getattr(data, part)]
    return compute_metrics_of_rows(model, loaded, task.metrics, targets, data.labels, encoded)


def compute_metrics_of_rows(
    model: torch.nn.Module,
    loaded: Loaded,
    names: Sequence[str],
    targets: Sequence[str],
    labels: Sequence[str],
    encoded: Sequence[Encoded],
) -> MetricScores:
    """Compute metrics on some examples.

    Args:
        names: names of the metrics. Exact match is left out.
        targets: target of each example.
        labels: all labels, for metrics of labels.
        encoded: token ids of each example.

    Raises:
        UserError: a metric returned a score that is not a finite number.
    """
    metrics = declared(names)
    scores: dict[str, float] = {}
    answers = None
    if any(metric.of_labels for metric in metrics):
        answers = choose_labels(model, loaded, encoded, labels)
        scores |= _scored([metric for metric in metrics if metric.of_labels], answers, targets)
    if any(not metric.of_labels for metric in metrics):
        limit = int(SLACK * max(len(row.target_ids) for row in encoded)) + 8
        answers = generate(model, loaded, [row.input_ids for row in encoded], limit)
        scores |= _scored([metric for metric in metrics if not metric.of_labels], answers, targets)
    return MetricScores(scores, answers)


def _scored(metrics: Sequence[Metric], predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in metrics:
        returned = metric.score(predictions, targets)
        figures = {name: _finite(value) for name, value in returned.items()}
        if figures.keys() != metric.headings.keys() or None in figures.values():
            raise UserError(
                f"the metric {metric.name} returned {returned}, not a finite number for each of "
                f"{', '.join(metric.headings)}; repair the package that declares it"
            )
        found |= {name: figure for name, figure in figures.items() if figure is not None}
    return found


def _finite(value: Any) -> float | None:
    """Return a figure of a metric as a float. None if it is not a finite number."""
    try:
        figure = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return figure if math.isfinite(figure) else None
