"""chrF (Popovic 2015) as sacrebleu (Post 2018) computes it with its default settings."""

from __future__ import annotations

from collections.abc import Sequence

from petransfer.recipe.metrics import Metric


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the chrF score of all predictions together, 0 to 100."""
    import sacrebleu

    return {"chrf": float(sacrebleu.corpus_chrf(list(predictions), [list(targets)]).score)}


METRIC = Metric(
    "chrf",
    {"chrf": "chrF"},
    score,
    module="sacrebleu",
    package="sacrebleu",
    meaning="chrF: F score of the sequences of up to 6 characters that the generated texts share with the targets; "
    "from 0 to 100, and 100 is best.",
)
