"""`train --folds`: cross-validate on the user's own data, then train on all rows."""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from petransfer.api import write_results
from petransfer.cli.run import run_grid
from petransfer.cli.terminal_text import print_text
from petransfer.cli.train_output import fold_hooks, new_out
from petransfer.data.rows.builder import FIRST_ROW
from petransfer.plurals import count
from petransfer.study import run_study
from petransfer.study.cross_validation import CrossValidation, FoldScore, folds_as_json
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.study import StudyGrid
from petransfer.study.train_study import TrainStudy
from petransfer.study.train_summary import LEARNT, MEMORISED, final_loss, memorised_line, settings_to_try

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _notes_once(begun: bool) -> Iterator[None]:
    """While the context is open, log each note about the data once, and not for each fold.

    Args:
        begun: Whether the first fold was finished before. The first row of the data is then not shown for later folds.
    """
    known: set[str] = {FIRST_ROW} if begun else set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        text = FIRST_ROW if text.startswith(FIRST_ROW) else text  # each fold can have another first row
        return not (text in known or known.add(text))  # type: ignore[func-returns-value]

    notes = logging.getLogger(run_study.__name__)
    notes.addFilter(is_new)
    try:
        yield
    finally:
        notes.removeFilter(is_new)


def _advice(found: CrossValidation, scores: Sequence[FoldScore]) -> str:
    """Return what to try if the folds' scores are low. Empty if they are not low."""
    mean = statistics.mean(one.exact_match for one in scores)
    if mean >= LEARNT:
        return ""
    runs = (fold.grid.folder.run(fold.grid.cells[0].run_id) for fold in found.folds)
    losses = [loss for run in runs if (loss := final_loss(run)) is not None]
    if losses and statistics.mean(losses) < MEMORISED:
        return memorised_line(statistics.mean(losses), mean, "the folds")
    first = found.folds[0]
    tries = settings_to_try(first.grid.cells[0], first.rows["train"])
    return f"the scores of the folds are low; try {', or '.join(tries)}"


def train_folds(
    found: CrossValidation, settings: Settings, as_json: bool, begin: Callable[[], None] = lambda: None
) -> TrainStudy:
    """Train and score each fold. Then train on all rows and return that run.

    Args:
        as_json: Whether JSON is printed instead of text.
        begin: Prints a description of the training. Called once, after the checks of the first fold.
    """
    show: Callable[[str], None] = logger.debug if as_json else print_text

    def run(grid: StudyGrid) -> None:
        first = grid is found.folds[0].grid
        hooks = fold_hooks(grid, f"fold {grid.folder.path.name}", begin if first else lambda: None)
        run_grid(grid, hooks, replace(settings, dev_only=True), Scheduling(), as_json)

    first_fold = found.folds[0].grid
    with _notes_once(first_fold.folder.run(first_fold.cells[0].run_id).done):
        scores = found.run(run, show)
        if advice := _advice(found, scores):
            show(advice)
            if found.out_given:
                show(new_out(found.folder))
        last = found.last_training(scores)
        show(f"last run: training on all {count(last.rows['train'], 'row')}")
        run_grid(last.grid, fold_hooks(last.grid, "all rows"), settings, Scheduling(), as_json)
    write_results(last.grid)
    if as_json:
        print(json.dumps({"folder": str(last.grid.folder.path), **folds_as_json(scores)}, indent=1))
    return last
