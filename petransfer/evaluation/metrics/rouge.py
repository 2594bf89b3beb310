"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) as rouge-score computes them, without stemming."""

from __future__ import annotations

from collections.abc import Sequence

from petransfer.recipe.metrics import Metric

HEADINGS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the F1 score of each ROUGE variant, 0 to 100, averaged over the examples."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(HEADINGS), use_stemmer=False)
    rows = [scorer.score(target, one) for target, one in zip(targets, predictions, strict=True)]
    return {kind: 100 * sum(row[kind].fmeasure for row in rows) / len(rows) for kind in HEADINGS}


METRIC = Metric("rouge", HEADINGS, score, judged_by="rougeL", module="rouge_score", package="rouge-score")
