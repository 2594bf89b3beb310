"""Accuracy over a closed set of labels."""

from __future__ import annotations

from collections.abc import Sequence

from petransfer.recipe.metrics import Metric


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the percentage of examples whose predicted label is the target."""
    return {"accuracy": 100 * sum(map(str.__eq__, predictions, targets)) / len(targets)}


METRIC = Metric(
    "accuracy",
    {"accuracy": "accuracy %"},
    score,
    of_labels=True,
    share_of_answers=True,
    meaning="accuracy %: share of the examples for which the model chooses the correct label. (For exact match, "
    "the model generates free text.)",
)
