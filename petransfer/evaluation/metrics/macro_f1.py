"""Macro-F1 over a closed set of labels."""

from __future__ import annotations

from collections.abc import Sequence

from petransfer.recipe.metrics import Metric


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the F1 score in per cent, averaged over all labels among targets and predictions."""
    labels = sorted({*predictions, *targets})
    return {"macro_f1": 100 * sum(_f1(label, predictions, targets) for label in labels) / len(labels)}


def _f1(label: str, predictions: Sequence[str], targets: Sequence[str]) -> float:
    hits = sum(one == label == target for one, target in zip(predictions, targets, strict=True))
    occurs = sum(one == label for one in predictions) + sum(target == label for target in targets)
    return 2 * hits / occurs


METRIC = Metric(
    "macro_f1",
    {"macro_f1": "macro-F1 %"},
    score,
    of_labels=True,
    meaning="macro-F1 %: mean of the labels' F1 scores, for the same chosen labels; a rare label counts like a "
    "frequent one.",
)
