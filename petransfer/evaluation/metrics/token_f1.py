"""Token F1 (Rajpurkar et al. 2016): the overlap of words between a generated text and the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from petransfer.evaluation.metrics.bleu import warn_of_scripts_without_blanks
from petransfer.recipe.metrics import Metric


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the F1 score of the predicted words, in per cent, averaged over the examples.

    Words are separated by whitespace. A word that occurs twice counts twice. Case and punctuation matter.
    """
    warn_of_scripts_without_blanks("token_f1", targets)
    pairs = zip(predictions, targets, strict=True)
    return {"token_f1": 100 * sum(_f1(one.split(), target.split()) for one, target in pairs) / len(targets)}


def _f1(prediction: list[str], target: list[str]) -> float:
    if not prediction and not target:
        return 1.0
    return 2 * (Counter(prediction) & Counter(target)).total() / (len(prediction) + len(target))


METRIC = Metric(
    "token_f1",
    {"token_f1": "token F1 %"},
    score,
    meaning="token F1 %: mean F1 score of the words that a generated text shares with its target.",
)
