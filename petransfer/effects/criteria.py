"""What effects are taken on: exact match, or a metric of which a run keeps one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petransfer.evaluation.text_metrics import HEADINGS
from petransfer.recipe.schema import EXACT_MATCH


@dataclass(frozen=True)
class Criterion:
    """A metric as effects are judged by it, 0 to 100.

    key: its figure among those of a run's test. word, short: what it is called in a sentence and in a table's head.
    unit: what follows its figures. of_answers: it is a share of right answers, which have odds.
    """

    key: str
    word: str
    short: str
    unit: str
    of_answers: bool = False

    @property
    def by_example(self) -> bool:
        """Whether the outcome of every test example is kept."""
        return self.key == EXACT_MATCH

    @property
    def note(self) -> str:
        """What must be known of effects that are judged by it, in a sentence; nothing of exact match."""
        if self.by_example:
            return ""
        left_out = "McNemar's test" if self.of_answers else "log-odds, McNemar's test"
        return (
            f"Effects are judged by test {self.word}, of which a run keeps one figure: intervals are a bootstrap over "
            f"seeds alone and do not speak of other test examples, and {left_out} and the paper's figures are left out."
        )


def _headed(key: str, of_answers: bool = False) -> Criterion:
    """A metric as it is headed in tables."""
    heading = HEADINGS[key]
    word = heading.removesuffix(" %")
    return Criterion(key, word, word, heading.removeprefix(word), of_answers)


CRITERIA = {
    EXACT_MATCH: Criterion(EXACT_MATCH, "exact match", "EM", " %", of_answers=True),
    "accuracy": _headed("accuracy", of_answers=True),
    "macro_f1": _headed("macro_f1"),
    "chrf": _headed("chrf"),
    "bleu": _headed("bleu"),
    "rouge": _headed("rougeL"),
}


def criterion_of(effects: Mapping[str, Any]) -> Criterion:
    """The one that effects.json was judged by."""
    return CRITERIA[effects.get("judged_by", EXACT_MATCH)]


def unlearnt(dev: Sequence[float], unit: str) -> str:
    """What must be known of a verdict where a side has not even learnt what it was trained on."""
    which = "first" if dev[0] < dev[1] else "second"
    return f"on dev {dev[0]:.1f} and {dev[1]:.1f}{unit}: the {which} has not learnt what both were trained on"
