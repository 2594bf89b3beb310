"""`train --folds`: cross-validate on the user's own data, then train on all rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

from petransfer.api import write_results
from petransfer.cli.run import Kind, run_grid
from petransfer.plurals import count
from petransfer.report.sweep import plain_line
from petransfer.study.cross_validation import CrossValidation, as_json, median_steps
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.study import StudyGrid
from petransfer.study.train_study import TrainStudy

logger = logging.getLogger(__name__)


def describe_folds(found: CrossValidation) -> str:
    """Return a line about the rows and folds of a cross-validation."""
    rows = found.folds[0].rows
    total = count(rows["train"] + rows["dev"], "row")
    return f"data: {total} in {len(found.folds)} folds; each fold is scored by a model that is trained on the others"


def train_folds(found: CrossValidation, settings: Settings, machine: bool) -> TrainStudy:
    """Train and score each fold. Return the training on all rows.

    With `machine`, JSON is printed instead of text.
    """
    show: Callable[[str], None] = logger.debug if machine else print

    def run(grid: StudyGrid) -> None:
        kind = Kind(lambda: grid.folder.open(grid.recipe), lambda machine: None, plain_line)
        run_grid(grid, kind, replace(settings, dev_only=True), Scheduling(), machine)

    scores = found.run(run, show)
    steps = median_steps(scores)
    last = found.last_training(scores)
    show(f"training on all {count(last.rows['train'], 'row')} for {count(steps, 'step')}, the median of the folds")
    folder, recipe = last.grid.folder, last.grid.recipe
    kind = Kind(lambda: folder.open(recipe), lambda machine: None, lambda row: f"all rows: {row.status}")
    run_grid(last.grid, kind, settings, Scheduling(), machine)
    write_results(last.grid)
    if machine:
        print(json.dumps({"folder": str(last.grid.folder.path), **as_json(scores)}, indent=1))
    return last
