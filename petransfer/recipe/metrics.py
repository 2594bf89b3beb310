"""The declaration of a metric, and the registry of all metrics except exact match. This module does not import torch.

A file in `petransfer/evaluation/metrics/` declares a metric by assigning a `Metric`. Another package declares a metric
with an entry point of the group `petransfer.metrics`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.registries import Registry

Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]

# Exact match is measured for every run, whatever a recipe requests. It needs no generated text, and is not in METRICS.
EXACT_MATCH = "exact_match"


@dataclass(frozen=True)
class Metric:
    """A metric that compares generated texts, or chosen labels, with the targets.

    Args:
        name: Name in recipes.
        headings: Heading in tables of each score that `score` returns. The heading of a percentage contains `%`.
        score: Function of `(predictions, targets)` that returns scores from 0 to 100 by name. The two arguments have
            the same length, at least 1.
        judged_by: Name of the score that effects are computed on. Empty: the first score in `headings`.
        of_labels: Whether predictions are chosen from a closed set of labels instead of generated.
        share_of_answers: Whether the score of `judged_by` is the share of correct predictions. Log-odds can be computed
            from a share.
        meaning: A sentence on each heading, such as `accuracy %: ...`, which is printed below tables of scores.
        module: Module that `score` imports. A recipe with this metric is refused if the module is not installed.
        package: Name of this module's package for `pip install`.
    """

    name: str
    headings: Mapping[str, str]
    score: Score
    judged_by: str = ""
    of_labels: bool = False
    share_of_answers: bool = False
    module: str = ""
    package: str = ""
    meaning: str = ""

    @property
    def figure(self) -> str:
        """The name of the score that effects are computed on."""
        return self.judged_by or next(iter(self.headings))


METRICS: Registry[Metric] = Registry("metric", Metric, "petransfer.evaluation.metrics", "petransfer.metrics")
"""All metrics by name: those of `petransfer/evaluation/metrics/` and those of other packages."""


class Headings(Mapping[str, str]):
    """The heading in tables of each score of every metric, by the score's name."""

    def __getitem__(self, figure: str) -> str:
        return self._all()[figure]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @staticmethod
    def _all() -> dict[str, str]:
        found: dict[str, str] = {}
        for name in METRICS:
            with contextlib.suppress(UserError):  # a metric of a broken package is an error only where it is used
                found |= METRICS[name].headings
        return found


HEADINGS = Headings()


def meanings(scores: Collection[str]) -> list[str]:
    """Return the explanation of the headings of each metric that has one of these scores.

    Args:
        scores: The names of the scores.
    """
    found = []
    for name in METRICS:
        with contextlib.suppress(UserError):  # a metric of a broken package
            if METRICS[name].meaning and not METRICS[name].headings.keys().isdisjoint(scores):
                found.append(METRICS[name].meaning)
    return found


def check_metric_name(name: str) -> str:
    """Return `name` if a metric has this name, else raise UserError."""
    return name if name == EXACT_MATCH else METRICS.lookup(name).name
