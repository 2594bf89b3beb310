"""BLEU (Papineni et al. 2002) as sacrebleu (Post 2018) computes it with its default settings."""

from __future__ import annotations

from collections.abc import Sequence

from petransfer.recipe.metrics import Metric


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the BLEU score of all predictions together (corpus BLEU), 0 to 100."""
    import sacrebleu

    return {"bleu": float(sacrebleu.corpus_bleu(list(predictions), [list(targets)]).score)}


METRIC = Metric(
    "bleu",
    {"bleu": "BLEU"},
    score,
    module="sacrebleu",
    package="sacrebleu",
    meaning="BLEU: how many words, and sequences of up to 4 words, the generated texts share with the targets; from 0 "
    "to 100, and 100 is best.",
)
