"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) as rouge-score computes them, without stemming."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from petransfer.plurals import count
from petransfer.recipe.metrics import Metric

logger = logging.getLogger(__name__)

HEADINGS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the F1 score of each ROUGE variant, 0 to 100, averaged over the examples."""
    from rouge_score.rouge_scorer import RougeScorer

    unread = sum(re.search("[a-z0-9]", target.lower()) is None for target in targets)
    if unread:
        logger.warning(
            "rouge reads only the letters a to z and digits; %s of %s have none of them and score 0; use chrf",
            f"{unread:,}", count(len(targets), "target"),
        )  # fmt: skip
    scorer = RougeScorer(list(HEADINGS), use_stemmer=False)
    rows = [scorer.score(target, one) for target, one in zip(targets, predictions, strict=True)]
    return {kind: 100 * sum(row[kind].fmeasure for row in rows) / len(rows) for kind in HEADINGS}


METRIC = Metric(
    "rouge",
    HEADINGS,
    score,
    judged_by="rougeL",
    module="rouge_score",
    package="rouge-score",
    meaning="ROUGE: mean F1 score of the words (ROUGE-1), the pairs of words (ROUGE-2) and the longest sequence of "
    "words (ROUGE-L) that a generated text shares with its target; from 0 to 100, and 100 is best.",
)
