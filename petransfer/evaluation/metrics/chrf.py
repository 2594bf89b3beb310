"""chrF (Popovic 2015) as sacrebleu computes it with its own settings (Post 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from petransfer.recipe.metrics import Metric


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the corpus score, 0 to 100."""
    import sacrebleu

    return {"chrf": float(sacrebleu.corpus_chrf(list(predictions), [list(targets)]).score)}


METRIC = Metric("chrf", {"chrf": "chrF"}, score, module="sacrebleu", package="sacrebleu")
