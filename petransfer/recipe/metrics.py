"""What a metric declares about itself, and the registry of all metrics beside exact match. Imports no torch.

Each file in `petransfer/evaluation/metrics/` declares one metric by assigning a `Metric`; other packages declare theirs
by entry points of the group `petransfer.metrics`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.registries import Registry

Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]

# Measured for every run, whatever a recipe asks for. It needs no generated text, and is no entry of METRICS.
EXACT_MATCH = "exact_match"


@dataclass(frozen=True)
class Metric:
    """A metric that compares generated texts, or chosen labels, with the targets.

    Args:
        name: what a recipe calls it.
        headings: the figures that `score` returns, each with its heading in tables; `%` in it if it is a percentage.
        score: `(predictions, targets)` -> the figures, from 0 to 100; both have the same length, which is not 0.
        judged_by: the figure that effects are judged by; the first one unless given.
        of_labels: the predictions are the best of the closed set of labels, rather than generated texts.
        share_of_answers: the figure is a share of correct answers, which has odds.
        module: a module that `score` imports; a recipe is refused where it is not installed.
        package: what `pip install` calls that module's package.
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
    """The headings of all figures of all metrics in tables, read from METRICS when they are first needed."""

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
            with contextlib.suppress(UserError):  # a broken package is an error where its metric is used
                found |= METRICS[name].headings
        return found


HEADINGS = Headings()


def check_metric_name(name: str) -> str:
    """Return the name of a metric.

    Raises:
        UserError: there is no such metric; the nearest name is given.
    """
    return name if name == EXACT_MATCH else METRICS.lookup(name).name
