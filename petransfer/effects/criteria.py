"""The metrics on which effects can be computed: exact match, or another metric with one value per run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from petransfer.recipe.metrics import EXACT_MATCH, METRICS


@dataclass(frozen=True)
class Criterion:
    """A metric on which effects are computed. Its values are between 0 and 100.

    Attributes:
        key: name of the metric in result.json.
        word: name of the metric in a sentence.
        short: name of the metric in a table header.
        unit: text that is printed after a value, such as ` %`.
        of_answers: whether the metric is a share of correct answers. Log-odds exist only for such metrics.
    """

    key: str
    word: str
    short: str
    unit: str
    of_answers: bool = False

    @property
    def by_example(self) -> bool:
        """Whether runs save a value of the metric for each test example. True only for exact match."""
        return self.key == EXACT_MATCH

    @property
    def note(self) -> str:
        """A note on statistics that cannot be computed for this metric. '' for exact match."""
        if self.by_example:
            return ""
        left_out = "McNemar's test" if self.of_answers else "Log-odds, McNemar's test"
        return (
            f"Effects are differences in test {self.word}. A run has one value of {self.word}, not one value per test "
            f"example. The 95 % intervals therefore show only the variation between seeds. {left_out} and the "
            "comparison with the paper are left out."
        )


class Criteria(Mapping[str, Criterion]):
    """The `Criterion` of each metric, by the metric's name. Exact match comes first."""

    def __getitem__(self, name: str) -> Criterion:
        if name == EXACT_MATCH:
            return Criterion(EXACT_MATCH, "exact match", "EM", " %", of_answers=True)
        metric = METRICS[name]
        heading = metric.headings[metric.figure]
        word = heading.removesuffix(" %")
        return Criterion(metric.figure, word, word, heading.removeprefix(word), metric.share_of_answers)

    def __iter__(self) -> Iterator[str]:
        return iter((EXACT_MATCH, *METRICS))

    def __len__(self) -> int:
        return 1 + len(METRICS)


CRITERIA = Criteria()


def criterion_of(effects: Mapping[str, Any]) -> Criterion:
    """Return the metric on which a study's effects were computed. `effects`: content of effects.json."""
    return CRITERIA[effects.get("judged_by", EXACT_MATCH)]
