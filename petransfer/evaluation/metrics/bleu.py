"""BLEU (Papineni et al. 2002) as sacrebleu computes it with its own settings (Post 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from petransfer.recipe.metrics import Metric


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the corpus score, 0 to 100."""
    import sacrebleu

    return {"bleu": float(sacrebleu.corpus_bleu(list(predictions), [list(targets)]).score)}


METRIC = Metric("bleu", {"bleu": "BLEU"}, score, module="sacrebleu", package="sacrebleu")
