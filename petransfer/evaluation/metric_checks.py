"""Refuse metrics that cannot be computed, before any training. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from petransfer.errors import UserError
from petransfer.recipe.metrics import EXACT_MATCH, METRICS, Metric

# The largest number of different targets that count as a closed set of labels. Each label is scored for every example,
# so that more labels would take too long.
LABELS = 200


def declared(names: Sequence[str]) -> list[Metric]:
    """Return the `Metric` of each name. Exact match has no `Metric` and is left out.

    Raises:
        UserError: a name is unknown.
    """
    return [METRICS.lookup(name) for name in names if name != EXACT_MATCH]


def check_metrics(names: Sequence[str], labels: Callable[[], tuple[int, str]]) -> None:
    """Refuse metrics that cannot be computed.

    Args:
        names: names of the metrics.
        labels: function that returns the number of different targets and the name of the training data.

    Raises:
        UserError: a name is unknown, a library is not installed, or there are too many labels.
    """
    metrics = declared(names)
    for metric in metrics:
        if metric.module and importlib.util.find_spec(metric.module) is None:
            raise UserError(
                f"the metric {metric.name} needs {metric.package}, which is not installed; "
                f'run `pip install "petransfer[text]"`, or install {metric.package} alone'
            )
    # `labels` reads the training data, so it is called only for metrics of labels.
    of_labels = [metric.name for metric in metrics if metric.of_labels]
    if of_labels:
        count, where = labels()
        if count > LABELS:
            raise UserError(
                f"{of_labels[0]} scores every label for every example, and {where} has {count:,} different targets, "
                f"more than {LABELS}; use exact_match"
            )
