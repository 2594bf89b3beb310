"""Refuse, before anything is trained, metrics that could not be measured. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from petransfer.errors import UserError
from petransfer.recipe.metrics import EXACT_MATCH, METRICS, Metric

# All labels are scored for every example. More different targets than this are no closed set of labels.
LABELS = 200


def declared(names: Sequence[str]) -> list[Metric]:
    """Return what the named metrics declare; exact match, which needs no metric, is left out.

    Raises:
        UserError: a name is unknown.
    """
    return [METRICS.lookup(name) for name in names if name != EXACT_MATCH]


def check_metrics(names: Sequence[str], labels: Callable[[], tuple[int, str]]) -> None:
    """Refuse metrics that could not be measured.

    Args:
        labels: returns the number of different targets and where they are; called only if labels are scored.

    Raises:
        UserError: a name is unknown, a library is not installed, or there are too many targets to score each.
    """
    metrics = declared(names)
    for metric in metrics:
        if metric.module and importlib.util.find_spec(metric.module) is None:
            raise UserError(
                f"the metric {metric.name} needs {metric.package}, which is not installed: pip install "
                f'"petransfer[text]", or {metric.package} alone'
            )
    of_labels = [metric.name for metric in metrics if metric.of_labels]
    if of_labels:
        count, where = labels()
        if count > LABELS:
            raise UserError(
                f"{of_labels[0]} scores every label for every example, and {where} has {count:,} different targets, "
                f"more than {LABELS}; use exact_match"
            )
