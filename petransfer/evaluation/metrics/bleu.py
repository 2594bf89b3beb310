"""BLEU (Papineni et al. 2002) as sacrebleu (Post 2018) computes it with its default settings."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from petransfer.plurals import count
from petransfer.recipe.metrics import Metric

logger = logging.getLogger(__name__)

# The largest number of words in the sequences that BLEU counts.
ORDER = 4
# Scripts that put no blanks between words: Thai, Lao, Myanmar, Khmer, kana, Chinese characters.
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]{2}")


def warn_of_scripts_without_blanks(metric: str, targets: Sequence[str]) -> bool:
    """Warn if a metric that separates words at blanks gets targets in a script without blanks between words.

    Args:
        metric: The metric's name, for the message.

    Returns:
        Whether there are such targets.
    """
    unread = sum(_WITHOUT_BLANKS.search(target) is not None for target in targets)
    if unread:
        logger.warning(
            "%s separates words at blanks; %s of %s are in a script without blanks between words, such as Chinese, "
            "Japanese or Thai, where a whole sentence can count as one word; use chrf",
            metric, f"{unread:,}", count(len(targets), "target"),
        )  # fmt: skip
    return unread > 0


def score(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the BLEU score of all predictions together (corpus BLEU), 0 to 100."""
    import sacrebleu

    found = float(sacrebleu.corpus_bleu(list(predictions), [list(targets)]).score)
    if not warn_of_scripts_without_blanks("bleu", targets):
        _warn_of_short_texts(targets)
    return {"bleu": found}


def _warn_of_short_texts(targets: Sequence[str]) -> None:
    """Warn if no target has the 4 words that BLEU needs: the score is then 0 for correct texts too."""
    import sacrebleu

    # punctuation marks count as words, so the score of correct texts decides
    some = list(targets)
    if max(len(text.split()) for text in some) < ORDER and not sacrebleu.corpus_bleu(some, [some]).score:
        logger.warning(
            "bleu counts sequences of up to %s words, and no target has %s words; the score is 0 for correct texts "
            "too; use chrf or exact match", ORDER, ORDER,
        )  # fmt: skip


METRIC = Metric(
    "bleu",
    {"bleu": "BLEU"},
    score,
    module="sacrebleu",
    package="sacrebleu",
    meaning="BLEU: how many words, and sequences of up to 4 words, the generated texts share with the targets; from 0 "
    "to 100, and 100 is best.",
)
