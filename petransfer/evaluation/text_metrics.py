"""What is measured beside exact match, by name. Imports no torch; the text metrics are those of sacrebleu and rouge."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from petransfer.errors import UserError

# Labels are all scored for every example; more of them than this are no small closed set.
LABELS = 200
OF_LABELS, OF_TEXT = ("accuracy", "macro_f1"), ("chrf", "bleu", "rouge")
_NEEDS = {"chrf": "sacrebleu", "bleu": "sacrebleu", "rouge": "rouge_score"}
_INSTALL = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
HEADINGS = {
    "accuracy": "accuracy %",
    "macro_f1": "macro-F1 %",
    "chrf": "chrF",
    "bleu": "BLEU",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}


def check_metrics(metrics: Sequence[str], labels: Callable[[], tuple[int, str]]) -> None:
    """Refuses what could not be measured, before anything is trained.

    labels: gives the number of different targets, and where they stand; is called only if labels are scored.

    Raises:
        UserError: a library is not installed, or the targets are too many to score each.
    """
    for metric in metrics:
        module = _NEEDS.get(metric)
        if module and importlib.util.find_spec(module) is None:
            raise UserError(
                f"the metric {metric} needs {_INSTALL[module]}, which is not installed: pip install "
                f'"petransfer[text]", or {_INSTALL[module]} alone'
            )
    asked = [metric for metric in metrics if metric in OF_LABELS]
    if asked:
        count, where = labels()
        if count > LABELS:
            raise UserError(
                f"{asked[0]} scores every label for every example, and {where} has {count:,} different targets, more "
                f"than {LABELS}; take exact_match"
            )


def text_scores(metrics: Sequence[str], said: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Corpus scores of what a model said, 0 to 100, as the libraries give them with their own settings.

    chrf, bleu: sacrebleu's (Post 2018). rouge: the mean F of rouge-score's three, without stemming (Lin 2004).
    """
    found: dict[str, float] = {}
    if "chrf" in metrics or "bleu" in metrics:
        import sacrebleu

        if "chrf" in metrics:
            found["chrf"] = float(sacrebleu.corpus_chrf(list(said), [list(targets)]).score)
        if "bleu" in metrics:
            found["bleu"] = float(sacrebleu.corpus_bleu(list(said), [list(targets)]).score)
    if "rouge" in metrics:
        found |= _rouge(said, targets)
    return found


def _rouge(said: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=False)
    rows = [scorer.score(target, answer) for target, answer in zip(targets, said, strict=True)]
    return {kind: 100 * sum(row[kind].fmeasure for row in rows) / len(rows) for kind in kinds}


def label_scores(metrics: Sequence[str], said: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """In percent. macro_f1: the mean over the labels that occur among the targets or the answers."""
    found = {}
    if "accuracy" in metrics:
        found["accuracy"] = 100 * sum(map(str.__eq__, said, targets)) / len(targets)
    if "macro_f1" in metrics:
        labels = sorted({*said, *targets})
        found["macro_f1"] = 100 * sum(_f1(label, said, targets) for label in labels) / len(labels)
    return found


def _f1(label: str, said: Sequence[str], targets: Sequence[str]) -> float:
    hits = sum(answer == label == target for answer, target in zip(said, targets, strict=True))
    asked = sum(answer == label for answer in said) + sum(target == label for target in targets)
    return 2 * hits / asked
