"""Read the scores of a study's runs from the run folders, grouped by arm, method and split."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from petransfer.data.task_registry import categories_in
from petransfer.effects.criteria import CRITERIA
from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe
from petransfer.recipe.metrics import EXACT_MATCH
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.recorded_bases import cells_of
from petransfer.unreadable_files import refuse_unreadable
from petransfer.user_paths import expanded


@dataclass(frozen=True)
class ArmScores:
    """The scores of the finished runs of one arm and method on one split, one run per seed.

    Attributes:
        scores: (seeds, examples) exact match, 0 or 1. For other metrics, (seeds, 1) values from 0 to 1.
        log_probs: (seeds,) mean log-probability per target token, in nats.
        index: (examples,) row numbers of the test examples.
        category: (columns,) category of each column of `scores`.
        dev: (seeds,) scores on dev, 0 to 1. NaN if unknown.
        rows: identifier of the test examples. It is equal for equal row numbers and, with the user's own rows, equal
            hashes of the rows.
    """

    seeds: tuple[int, ...]
    run_ids: tuple[str, ...]
    scores: np.ndarray
    log_probs: np.ndarray
    index: np.ndarray
    category: np.ndarray
    dev: np.ndarray
    metric: str = EXACT_MATCH
    rows: str = ""

    @property
    def key(self) -> str:
        """An identifier of the runs and their scores. The statistics treat groups with equal keys as one sample."""
        digest = hashlib.sha256(np.ascontiguousarray(self.scores).tobytes()).hexdigest()[:12]
        return f"{' '.join(self.run_ids)} {digest}"


@dataclass(frozen=True)
class Runs:
    """The runs of a study with their scores. Each file is read once.

    Attributes:
        cells: the runs of the grid, finished or not.
        metric: name of the metric whose values are the scores.
    """

    recipe: Recipe
    cells: Sequence[Cell]
    folder: StudyFolder
    metric: str = EXACT_MATCH
    _kept: dict[tuple[str, ...], ArmScores | None] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(cell.split for cell in self.cells))

    def methods(self, arm: str, split: str) -> list[str]:
        return list(dict.fromkeys(cell.method for cell in self.cells if cell.arm == arm and cell.split == split))

    def cells_of(self, arm: str, method: str, split: str) -> list[Cell]:
        """Return the grid's runs of an arm, method and split, finished or not."""
        return [cell for cell in self.cells if (cell.arm, cell.method, cell.split) == (arm, method, split)]

    def partner(self, arm: str, method: str, split: str) -> str:
        """Return the study's only method for `arm` on the split. If there are several methods, return `method`."""
        found = self.methods(arm, split)
        return method if method in found or len(found) != 1 else found[0]

    def scored(self, arm: str, method: str, split: str, categories: str = "") -> ArmScores | None:
        """Return the test scores of the finished runs of an arm, method and split.

        The result is None if no finished run was scored on the test set, or if no test example belongs to `categories`.

        Args:
            categories: group of categories, or one category, whose test examples alone count. '': all examples.

        Raises:
            UserError: the test examples of the runs differ, or a score is missing, or a file is missing or damaged.
        """
        done = [cell for cell in self.cells_of(arm, method, split) if self.folder.run(cell.run_id).scored]
        key = (categories, *(cell.run_id for cell in done))
        if done and key not in self._kept:
            wanted = categories_in(self.recipe.task.name, categories)
            self._kept[key] = _read(done, self.folder, self.metric, wanted)
        return self._kept.get(key)

    def why_missing(self, arm: str, method: str, split: str, categories: str = "") -> str:
        """Return the reason why `scored` returns None."""
        folders = [self.folder.run(cell.run_id) for cell in self.cells_of(arm, method, split)]
        if not folders:
            return f"{arm} is not trained with {method}"
        if categories and any(folder.scored for folder in folders):
            return f"no test example has the category {categories}"
        if any(folder.done for folder in folders):
            return f"no run of {arm} ({method}) was scored on the test set"
        counts = ", ".join(f"{count} {status}" for status, count in Counter(one.status() for one in folders).items())
        reasons = [reason for reason in (one.failure() for one in folders) if reason]
        return f"no run of {arm} ({method}) is done: {counts}" + (f"; {reasons[0]}" if reasons else "")


def runs_of(study: str, next_to: Path, metric: str = EXACT_MATCH) -> Runs | None:
    """Return the runs of another study. None if the study does not exist.

    Args:
        study: folder of the other study, or name of a folder next to `next_to`.
        next_to: folder of this study.
        metric: name of the metric whose values are the scores.
    """
    for path in (expanded(study), next_to.parent / study):
        if (path / "recipe.yaml").is_file():
            recipe, cells = cells_of(load_recipe(str(path / "recipe.yaml")), StudyFolder(path))
            return Runs(recipe, cells, StudyFolder(path), metric)
    return None


def _read(cells: Sequence[Cell], folder: StudyFolder, metric: str, categories: Sequence[str] = ()) -> ArmScores | None:
    """Read the scores of runs. None if no test example belongs to `categories`.

    Args:
        categories: test examples of other categories are left out. Empty: no example is left out.
    """
    runs = [_examples(folder, cell.run_id) for cell in cells]
    if categories:
        runs = [_of_categories(run, categories) for run in runs]
        if not len(runs[0]["index"]):
            return None
    for run in runs:
        if not np.array_equal(run["index"], runs[0]["index"]):
            raise UserError(f"the runs of {cells[0].arm} on {cells[0].split} were not tested on the same examples")
    by_example = CRITERIA[metric].by_example
    scores = [run["correct"] for run in runs] if by_example else [[_share(folder, cell, metric)] for cell in cells]
    return ArmScores(
        tuple(cell.seed for cell in cells),
        tuple(cell.run_id for cell in cells),
        np.array(scores, dtype=np.float64),
        np.array([run["log_prob"].sum() / run["tokens"].sum() for run in runs]),
        runs[0]["index"],
        runs[0]["category"] if by_example else np.zeros(1, dtype=np.int64),
        np.array([_dev(folder, cell, metric) for cell in cells]),
        metric,
        f"{hash_of_rows(cells)} {hashlib.sha256(runs[0]['index'].tobytes()).hexdigest()}",
    )


def hash_of_rows(cells: Sequence[Cell]) -> str:
    """Return the hash of the user's own rows on which runs are trained and tested. '' for a benchmark."""
    return str(cells[0].spec.task.options.get("sha256", ""))


def _of_categories(run: dict[str, Any], categories: Sequence[str]) -> dict[str, Any]:
    wanted = np.isin(run["category"].astype(str), categories)
    return {name: values[wanted] for name, values in run.items()}


def _dev(folder: StudyFolder, cell: Cell, metric: str) -> float:
    value = _metric_value(folder.run(cell.run_id), "dev", metric)
    return math.nan if value is None else value / 100


def _share(folder: StudyFolder, cell: Cell, metric: str) -> float:
    run = folder.run(cell.run_id)
    value = _metric_value(run, "test", metric)
    if value is None or not math.isfinite(value):
        raise UserError(
            f"{run.path / 'result.json'} has no finite test score for {metric}, on which the effects are computed; "
            f"delete {run.path} and repeat the run with `petransfer run --recipe {folder.path / 'recipe.yaml'}`"
        )
    return value / 100


def _metric_value(run: RunFolder, part: str, metric: str) -> float | None:
    value = (run.result() or {}).get(part, {}).get(CRITERIA[metric].key)
    return None if value is None else float(value)


def _examples(folder: StudyFolder, run_id: str) -> dict[str, Any]:
    import pyarrow.parquet

    columns = ["index", "category", "correct", "log_prob", "tokens"]
    with examples_of(folder, run_id) as path:
        table = pyarrow.parquet.read_table(path, columns=columns)
        return {name: table[name].to_numpy() for name in columns}


@contextlib.contextmanager
def examples_of(folder: StudyFolder, run_id: str) -> Iterator[Path]:
    """Yield the path of a finished run's examples.parquet, to be read inside the `with` block.

    Raises:
        UserError: the run was not scored on the test set, or the file is missing or damaged.
    """
    import pyarrow

    run = folder.run(run_id)
    if run.done and not run.scored:
        raise UserError(f"this run was not scored on the test set: {run.path}")
    path = run.path / "examples.parquet"
    refuse_unreadable(path)
    try:
        yield path
    # The caller reads the file inside its `with` block, so errors of reading arrive here.
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise UserError(
            f"{path} {why}, although the run is finished; delete {path.parent} and "
            f"repeat the run with `petransfer run --recipe {folder.path / 'recipe.yaml'}`"
        ) from None
