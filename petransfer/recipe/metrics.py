"""The declaration of a metric, and the registry of all metrics except exact match. Imports no torch.

Each file in `petransfer/evaluation/metrics/` declares one metric by assigning a `Metric`; other packages declare
theirs with entry points of the group `petransfer.metrics`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.registries import Registry

Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]

# Measured for every run, whatever a recipe requests. It needs no generated text, and has no entry in METRICS.
EXACT_MATCH = "exact_match"


@dataclass(frozen=True)
class Metric:
    """A metric that compares generated texts, or chosen labels, with the targets.

    Args:
        name: the name in recipes.
        headings: the figures that `score` returns, each with its heading in tables; `%` in it if it is a percentage.
        score: `(predictions, targets)` -> the figures, from 0 to 100; both have the same length, which is not 0.
        judged_by: the figure that effects are judged by; by default the first one.
        of_labels: predictions are chosen from the closed set of labels, rather than generated.
        share_of_answers: the figure is a share of correct predictions, so that odds can be computed.
        module: a module that `score` imports; a recipe is refused if it is not installed.
        package: the package of that module for `pip install`.
    """

    name: str
    headings: Mapping[str, str]
    score: Score
    judged_by: str = ""
    of_labels: bool = False
    share_of_answers: bool = False
    module: str = ""
    package: str = ""

    @property
    def figure(self) -> str:
        """The figure that effects are judged by."""
        return self.judged_by or next(iter(self.headings))


METRICS: Registry[Metric] = Registry("metric", Metric, "petransfer.evaluation.metrics", "petransfer.metrics")
"""All metrics by name: those of `petransfer/evaluation/metrics/` and those of other packages."""


class Headings(Mapping[str, str]):
    """The table headings of all figures of all metrics, read from METRICS when they are first needed."""

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
            with contextlib.suppress(UserError):  # a broken package raises an error only if its metric is used
                found |= METRICS[name].headings
        return found


HEADINGS = Headings()


def check_metric_name(name: str) -> str:
    """Return the name of a metric.

    Raises:
        UserError: there is no such metric; the message suggests the nearest name.
    """
    return name if name == EXACT_MATCH else METRICS.lookup(name).name
