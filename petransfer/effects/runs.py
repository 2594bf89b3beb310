"""The runs of a study as groups of scores: what contrasts are made of. Run folders are read once."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.verdict import Contrast
from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe
from petransfer.recipe.schema import EXACT_MATCH, Recipe
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.study.grid import Cell, expand


@dataclass(frozen=True)
class Scored:
    """The runs of one arm and method on one split, by seed. log_probs: (seeds,). index: (examples,).

    scores: (seeds, examples) of exact match, or (seeds, 1) of another metric, each run's figure over 100; `category`
    has as many entries as they have columns. dev: (seeds,) of the same on dev, NaN where a run has none.
    """

    seeds: tuple[int, ...]
    scores: np.ndarray
    log_probs: np.ndarray
    index: np.ndarray
    category: np.ndarray
    dev: np.ndarray
    metric: str = EXACT_MATCH


@dataclass(frozen=True)
class Runs:
    """A study's grid with what its folders hold. The same cells give the same object however often they are asked.

    metric: what runs are scored by.
    """

    recipe: Recipe
    cells: Sequence[Cell]
    folder: StudyFolder
    metric: str = EXACT_MATCH
    _kept: dict[tuple[str, ...], Scored] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """In the order of the grid."""
        return list(dict.fromkeys(cell.split for cell in self.cells))

    def methods(self, arm: str, split: str) -> list[str]:
        """The methods that the grid trains an arm by."""
        return list(dict.fromkeys(cell.method for cell in self.cells if cell.arm == arm and cell.split == split))

    def asked(self, arm: str, method: str, split: str) -> list[Cell]:
        """The cells of a group, done or not."""
        return [cell for cell in self.cells if (cell.arm, cell.method, cell.split) == (arm, method, split)]

    def partner(self, arm: str, method: str, split: str) -> str:
        """The method that `arm` is compared under: the same one, or its only one where it has not that."""
        found = self.methods(arm, split)
        return method if method in found or len(found) != 1 else found[0]

    def scored(self, arm: str, method: str, split: str) -> Scored | None:
        """The group's runs that are done, or None.

        Raises:
            UserError: they were not tested on the same examples, or one has no figure of the metric.
        """
        done = [cell for cell in self.asked(arm, method, split) if self.folder.run(cell.run_id).done]
        key = tuple(cell.run_id for cell in done)
        if done and key not in self._kept:
            self._kept[key] = _read(done, self.folder, self.metric)
        return self._kept.get(key)

    def why_none(self, arm: str, method: str, split: str) -> str:
        """What stands in the way of a group without runs that are done."""
        folders = [self.folder.run(cell.run_id) for cell in self.asked(arm, method, split)]
        if not folders:
            return f"{arm} is not trained by {method}"
        counts = ", ".join(f"{count} {status}" for status, count in Counter(one.status() for one in folders).items())
        reasons = [reason for reason in (one.failure() for one in folders) if reason]
        return f"no run of {arm} ({method}) is done: {counts}" + (f"; {reasons[0]}" if reasons else "")


def runs_of(study: str, beside: Path, metric: str = EXACT_MATCH) -> Runs | None:
    """Another study's runs: a folder, or the name of one beside `beside`; None where there is none."""
    for path in (Path(study).expanduser(), beside.parent / study):
        if (path / "recipe.yaml").is_file():
            recipe = load_recipe(str(path / "recipe.yaml"))
            return Runs(recipe, expand(recipe), StudyFolder(path), metric)
    return None


def compared(name: str, split: str, left: Scored, right: Scored, **names: Any) -> Contrast:
    """Two groups as a contrast; paired by seed where `names` says so, and then of the seeds that both have.

    Raises:
        UserError: the groups were not tested on the same examples.
    """
    if not np.array_equal(left.index, right.index):
        raise UserError(f"the runs of {name} on {split} were not tested on the same examples")
    rows = [list(range(len(side.seeds))) for side in (left, right)]
    if names.get("paired"):
        common = [seed for seed in left.seeds if seed in right.seeds]
        rows = [[side.seeds.index(seed) for seed in common] for side in (left, right)]
    left_out = len(left.seeds) + len(right.seeds) - len(rows[0]) - len(rows[1])
    _, categories = np.unique(left.category, return_inverse=True)
    # a whole group stays the object that it is, so that effects that share it draw it once
    parts = [
        side if len(at) == len(side.seeds) else _rows(side, at) for side, at in zip((left, right), rows, strict=True)
    ]
    return Contrast(
        name=name,
        split=split,
        left=parts[0].scores,
        right=parts[1].scores,
        log_prob_left=parts[0].log_probs,
        log_prob_right=parts[1].log_probs,
        categories=categories,
        examples=len(left.index),
        left_out=left_out,
        metric=left.metric,
        dev=(_mean(parts[0].dev), _mean(parts[1].dev)),
        **names,
    )


def _rows(group: Scored, rows: Sequence[int]) -> Scored:
    at = list(rows)
    seeds = tuple(group.seeds[row] for row in at)
    return replace(group, seeds=seeds, scores=group.scores[at], log_probs=group.log_probs[at], dev=group.dev[at])


def _read(cells: Sequence[Cell], folder: StudyFolder, metric: str) -> Scored:
    runs = [_examples(folder, cell.run_id) for cell in cells]
    for run in runs:
        if not np.array_equal(run["index"], runs[0]["index"]):
            raise UserError(f"the runs of {cells[0].arm} on {cells[0].split} were not tested on the same examples")
    by_example = CRITERIA[metric].by_example
    scores = [run["correct"] for run in runs] if by_example else [[_share(folder, cell, metric)] for cell in cells]
    return Scored(
        tuple(cell.seed for cell in cells),
        np.array(scores, dtype=np.float64),
        np.array([run["log_prob"].sum() / run["tokens"].sum() for run in runs]),
        runs[0]["index"],
        runs[0]["category"] if by_example else np.zeros(1, dtype=np.int64),
        np.array([_dev(folder, cell, metric) for cell in cells]),
        metric,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _dev(folder: StudyFolder, cell: Cell, metric: str) -> float:
    """A run's dev figure of a metric, over 100; NaN where it has none."""
    figure = _figure(folder.run(cell.run_id), "dev", metric)
    return math.nan if figure is None else figure / 100


def _share(folder: StudyFolder, cell: Cell, metric: str) -> float:
    """A run's test figure of a metric, over 100."""
    run = folder.run(cell.run_id)
    figure = _figure(run, "test", metric)
    if figure is None:
        raise UserError(
            f"{run.path / 'result.json'} has no test figure of {metric}, which the study is judged by; delete "
            f"{run.path}, and `petransfer run --recipe {folder.path / 'recipe.yaml'}` carries it out again"
        )
    return figure / 100


def _figure(run: RunFolder, part: str, metric: str) -> float | None:
    """What a run's result.json has of a metric on `dev` or `test`."""
    figure = (run.result() or {}).get(part, {}).get(CRITERIA[metric].key)
    return None if figure is None else float(figure)


def _examples(folder: StudyFolder, run_id: str) -> dict[str, Any]:
    import pyarrow.parquet

    columns = ["index", "category", "correct", "log_prob", "tokens"]
    with examples_of(folder, run_id) as path:
        table = pyarrow.parquet.read_table(path, columns=columns)
        return {name: table[name].to_numpy() for name in columns}


@contextlib.contextmanager
def examples_of(folder: StudyFolder, run_id: str) -> Iterator[Path]:
    """Where a run that is done keeps its test examples; what goes wrong while they are read is said in a line.

    Raises:
        UserError: the file is lost or damaged.
    """
    import pyarrow

    path = folder.run(run_id).path / "examples.parquet"
    try:
        yield path
    except (OSError, pyarrow.ArrowException) as error:
        why = "is lost" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise UserError(
            f"{path} {why}, though the run is done; delete {path.parent}, and "
            f"`petransfer run --recipe {folder.path / 'recipe.yaml'}` carries it out again"
        ) from None
