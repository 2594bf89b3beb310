"""`train --folds`: cross-validate on the user's own data, then train on all rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

from petransfer.api import write_results
from petransfer.cli.run import run_grid
from petransfer.cli.terminal_text import print_text
from petransfer.cli.train_output import fold_runs
from petransfer.plurals import count
from petransfer.study.cross_validation import CrossValidation, as_json, median_steps
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.study import StudyGrid
from petransfer.study.train_study import TrainStudy

logger = logging.getLogger(__name__)


def train_folds(found: CrossValidation, settings: Settings, machine: bool) -> TrainStudy:
    """Train and score each fold. Return the training on all rows.

    With `machine`, JSON is printed instead of text.
    """
    show: Callable[[str], None] = logger.debug if machine else print_text

    def run(grid: StudyGrid) -> None:
        kind = fold_runs(grid, f"fold {grid.folder.path.name}")
        run_grid(grid, kind, replace(settings, dev_only=True), Scheduling(), machine)

    scores = found.run(run, show)
    steps = median_steps(scores)
    last = found.last_training(scores)
    show(f"training on all {count(last.rows['train'], 'row')} for {count(steps, 'step')}, the median of the folds")
    run_grid(last.grid, fold_runs(last.grid, "all rows"), settings, Scheduling(), machine)
    write_results(last.grid)
    if machine:
        print(json.dumps({"folder": str(last.grid.folder.path), **as_json(scores)}, indent=1))
    return last
