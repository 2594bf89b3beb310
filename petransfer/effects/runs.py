"""The runs of a study as groups of scores, read from its run folders."""

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

from petransfer.effects.criteria import CRITERIA
from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe
from petransfer.recipe.metrics import EXACT_MATCH
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.study.grid import Cell, expand


@dataclass(frozen=True)
class Scored:
    """The finished runs of one arm and method on one split, by seed.

    scores: (seeds, examples) exact match, 0 or 1; or (seeds, 1) another metric, each run's value divided by 100.
    log_probs: (seeds,) mean log-probability per target token. index: (examples,) numbers of the test examples.
    category: of each column of `scores`. dev: (seeds,) the same metric on dev, NaN if a run has none.
    """

    seeds: tuple[int, ...]
    run_ids: tuple[str, ...]
    scores: np.ndarray
    log_probs: np.ndarray
    index: np.ndarray
    category: np.ndarray
    dev: np.ndarray
    metric: str = EXACT_MATCH

    @property
    def key(self) -> str:
        """An identifier of these runs and scores. Groups with the same key are one sample, which is drawn once."""
        digest = hashlib.sha256(np.ascontiguousarray(self.scores).tobytes()).hexdigest()[:12]
        return f"{' '.join(self.run_ids)} {digest}"


@dataclass(frozen=True)
class Runs:
    """A study's grid with the scores of its run folders; each folder is read once.

    metric: name of the metric that scores the runs.
    """

    recipe: Recipe
    cells: Sequence[Cell]
    folder: StudyFolder
    metric: str = EXACT_MATCH
    _kept: dict[tuple[str, ...], Scored] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """The splits in the order of the grid."""
        return list(dict.fromkeys(cell.split for cell in self.cells))

    def methods(self, arm: str, split: str) -> list[str]:
        """Return the methods of an arm on a split in the grid."""
        return list(dict.fromkeys(cell.method for cell in self.cells if cell.arm == arm and cell.split == split))

    def asked(self, arm: str, method: str, split: str) -> list[Cell]:
        """Return the cells of a group, finished or not."""
        return [cell for cell in self.cells if (cell.arm, cell.method, cell.split) == (arm, method, split)]

    def partner(self, arm: str, method: str, split: str) -> str:
        """Return the method under which `arm` is compared: `method`, or the arm's only method if it lacks this one."""
        found = self.methods(arm, split)
        return method if method in found or len(found) != 1 else found[0]

    def scored(self, arm: str, method: str, split: str) -> Scored | None:
        """Return the scores of a group's finished runs, or None if there are no finished runs.

        Raises:
            UserError: the runs were not tested on the same examples, or a run has no value of the metric.
        """
        done = [cell for cell in self.asked(arm, method, split) if self.folder.run(cell.run_id).done]
        key = tuple(cell.run_id for cell in done)
        if done and key not in self._kept:
            self._kept[key] = _read(done, self.folder, self.metric)
        return self._kept.get(key)

    def why_none(self, arm: str, method: str, split: str) -> str:
        """Return the reason why a group has no finished run."""
        folders = [self.folder.run(cell.run_id) for cell in self.asked(arm, method, split)]
        if not folders:
            return f"{arm} is not trained by {method}"
        counts = ", ".join(f"{count} {status}" for status, count in Counter(one.status() for one in folders).items())
        reasons = [reason for reason in (one.failure() for one in folders) if reason]
        return f"no run of {arm} ({method}) is done: {counts}" + (f"; {reasons[0]}" if reasons else "")


def runs_of(study: str, beside: Path, metric: str = EXACT_MATCH) -> Runs | None:
    """Return the runs of another study, or None if it does not exist. study: its folder, or a name next to `beside`."""
    for path in (Path(study).expanduser(), beside.parent / study):
        if (path / "recipe.yaml").is_file():
            recipe = load_recipe(str(path / "recipe.yaml"))
            return Runs(recipe, expand(recipe), StudyFolder(path), metric)
    return None


def _read(cells: Sequence[Cell], folder: StudyFolder, metric: str) -> Scored:
    runs = [_examples(folder, cell.run_id) for cell in cells]
    for run in runs:
        if not np.array_equal(run["index"], runs[0]["index"]):
            raise UserError(f"the runs of {cells[0].arm} on {cells[0].split} were not tested on the same examples")
    by_example = CRITERIA[metric].by_example
    scores = [run["correct"] for run in runs] if by_example else [[_share(folder, cell, metric)] for cell in cells]
    return Scored(
        tuple(cell.seed for cell in cells),
        tuple(cell.run_id for cell in cells),
        np.array(scores, dtype=np.float64),
        np.array([run["log_prob"].sum() / run["tokens"].sum() for run in runs]),
        runs[0]["index"],
        runs[0]["category"] if by_example else np.zeros(1, dtype=np.int64),
        np.array([_dev(folder, cell, metric) for cell in cells]),
        metric,
    )


def _dev(folder: StudyFolder, cell: Cell, metric: str) -> float:
    """Return a run's dev value of a metric divided by 100; NaN if there is none."""
    figure = _figure(folder.run(cell.run_id), "dev", metric)
    return math.nan if figure is None else figure / 100


def _share(folder: StudyFolder, cell: Cell, metric: str) -> float:
    """Return a run's test value of a metric divided by 100."""
    run = folder.run(cell.run_id)
    figure = _figure(run, "test", metric)
    if figure is None:
        raise UserError(
            f"{run.path / 'result.json'} has no test figure of {metric}, which the study is judged by; delete "
            f"{run.path} and repeat the run with `petransfer run --recipe {folder.path / 'recipe.yaml'}`"
        )
    return figure / 100


def _figure(run: RunFolder, part: str, metric: str) -> float | None:
    """Read a metric on `dev` or `test` from a run's result.json."""
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
    """Give the path of a finished run's test examples, as a context manager.

    If reading them in the `with` block fails, a one-line UserError is raised.

    Raises:
        UserError: the file is missing or damaged.
    """
    import pyarrow

    path = folder.run(run_id).path / "examples.parquet"
    try:
        yield path
    except (OSError, pyarrow.ArrowException) as error:
        why = "is lost" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise UserError(
            f"{path} {why}, though the run is done; delete {path.parent} and "
            f"repeat the run with `petransfer run --recipe {folder.path / 'recipe.yaml'}`"
        ) from None
