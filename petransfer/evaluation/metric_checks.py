"""Refuse metrics that cannot be measured, before any training. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from petransfer.errors import UserError
from petransfer.recipe.metrics import EXACT_MATCH, METRICS, Metric

# All labels are scored for every example. With more different targets than this, the labels are not a closed set.
LABELS = 200


def declared(names: Sequence[str]) -> list[Metric]:
    """Return the declarations of the named metrics, without exact match, which needs none.

    Raises:
        UserError: a name is unknown.
    """
    return [METRICS.lookup(name) for name in names if name != EXACT_MATCH]


def check_metrics(names: Sequence[str], labels: Callable[[], tuple[int, str]]) -> None:
    """Refuse metrics that cannot be measured.

    Args:
        labels: returns the number of different targets and the place of the data; called only if labels are scored.

    Raises:
        UserError: a name is unknown, a library is not installed, or there are too many targets to score each of them.
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
