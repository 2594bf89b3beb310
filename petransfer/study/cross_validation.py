"""Cross-validation for `petransfer train`: a training per fold, then a training on all rows."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from petransfer.atomic_files import write_text
from petransfer.data.rows.folds import ALL
from petransfer.errors import RunError, UserError
from petransfer.plurals import count
from petransfer.recipe.loading import overridden_key
from petransfer.study.folders import StudyFolder
from petransfer.study.launched_processes import launched_process
from petransfer.study.study import StudyGrid
from petransfer.study.train_folder import differences
from petransfer.study.train_request import TrainRequest
from petransfer.study.train_study import TrainStudy, train_study

MOST_FOLDS = 100


@dataclass(frozen=True)
class FoldScore:
    """The score of a model that was trained on all other folds.

    Attributes:
        fold: The number of the fold, counted from 1.
        rows: The number of rows in the fold.
        exact_match: Exact match on the fold's rows in per cent.
        steps: The step with this score: the best step, or the last step without early stopping.
    """

    fold: int
    rows: int
    exact_match: float
    steps: int

    def line(self, folds: int) -> str:
        """Return the score as one line of text. folds: the number of folds."""
        size = count(self.rows, "row")
        return f"fold {self.fold} of {folds}: exact match {self.exact_match:.1f} % on {size} at step {self.steps:,}"


@dataclass(frozen=True)
class CrossValidation:
    """The trainings of a cross-validation, ready to start.

    Attributes:
        model, data, request, overrides, has_bf16: The arguments of `cross_validation`.
        folder: The folder of the training on all rows. The folds are in the subfolders `folds/1`, `folds/2`, ...
        folds: One training for each fold.
        out_given: Whether the user chose the folder.
    """

    model: str
    data: str
    request: TrainRequest
    overrides: list[str]
    has_bf16: bool
    folder: Path
    folds: tuple[TrainStudy, ...]
    out_given: bool = False

    def run(self, run: Callable[[StudyGrid], None], show: Callable[[str], None]) -> tuple[FoldScore, ...]:
        """Train and score each fold, and return the scores. Finished trainings are skipped.

        `run` executes a study without scoring the test set. `show` displays a line of text.
        """
        found = []
        for number, training in enumerate(self.folds, 1):
            # `run` or `_score` raises an error if the training is not finished
            run(training.grid)
            found.append(_score(number, training))
            show(found[-1].line(len(self.folds)))
        show(summary(found))
        return tuple(found)

    def last_training(self, scores: tuple[FoldScore, ...]) -> TrainStudy:
        """Prepare the training on all rows, and write `folds.json`.

        The number of training steps is the median of the steps at which the folds were scored.
        """
        whole = replace(
            self.request,
            folds=None,
            steps=median_steps(scores),
            epochs=None,
            max_steps=None,
            max_minutes=None,
            early_stopping=None,
            options={**self.request.options, "fold": ALL},
        )
        # The folds determine the number of steps. All rows are training rows, so no dev set is left for early stopping.
        overrides = [one for one in self.overrides if not _sets_the_length(one)]
        training = train_study(self.model, self.data, whole, overrides, self.folder, self.has_bf16)
        training.grid.folder.open(training.grid.recipe)
        write_text(self.folder / "folds.json", json.dumps(folds_as_json(scores), indent=1) + "\n")
        return training


def _sets_the_length(override: str) -> bool:
    """Return whether an override such as `train.steps=500` sets the length of the training."""
    return overridden_key(override)[:2] in (["train", "steps"], ["train", "epochs"], ["train", "early_stopping"])


def cross_validation(
    model: str, data: str, request: TrainRequest, overrides: list[str], out: Path | None, has_bf16: bool
) -> CrossValidation:
    """Prepare the trainings of all folds and choose the output folder. Nothing is written.

    Raises:
        UserError: An argument is not valid, a fold has several runs, or `out` holds a training run with other settings.
    """
    folds = check_folds(request)

    def training(number: int, folder: Path | None) -> TrainStudy:
        part = replace(request, folds=None, options={**request.options, "fold": f"{number}/{folds}"})
        return train_study(model, data, part, overrides, folder, has_bf16)

    first = training(1, None)
    _check_one_run_per_fold(first.grid, f"1/{folds}")
    usual = Path("results") / f"{first.grid.recipe.name}-{folds}-folds"
    named = itertools.chain([usual], (usual.with_name(f"{usual.name}-{number}") for number in itertools.count(2)))
    base = out or next(folder for folder in named if not differences(folder / "folds" / "1", first.grid.recipe))
    StudyFolder(base).check(first.grid.recipe.name)
    trainings = (training(number, base / "folds" / str(number)) for number in range(1, folds + 1))
    return CrossValidation(model, data, request, overrides, has_bf16, base, tuple(trainings), out is not None)


def check_folds(request: TrainRequest) -> int:
    """Return the number of folds of a request.

    Raises:
        UserError: The number is not from 2 to `MOST_FOLDS`, the request has a dev set, a fold or several seeds, or a
            launcher started several processes.
    """
    folds = request.folds
    if launched_process().shared:
        raise UserError("--folds trains in one process; start the command without a launcher")
    if not isinstance(folds, int) or isinstance(folds, bool) or not 2 <= folds <= MOST_FOLDS:
        raise UserError(f"--folds {folds}: give a number from 2 to {MOST_FOLDS}, such as 5")
    if request.dev is not None:
        raise UserError("--folds and --dev: each fold is the dev set once; leave --dev out")
    if "fold" in request.options:
        raise UserError(f"--folds sets the option fold; remove fold={request.options['fold']}")
    if len(request.seeds) > 1:
        raise UserError("--folds works with one seed only; give one with --seeds")
    return folds


def _check_one_run_per_fold(grid: StudyGrid, fold: str) -> None:
    """Raise UserError if an override gives a fold several runs, or rows that do not belong to the fold.

    Args:
        grid: The grid of a fold.
        fold: The option `fold` of this grid, such as `1/5`.
    """
    if len(grid.cells) != 1:
        raise UserError(
            f"--folds trains one run per fold, and these settings give {len(grid.cells)}; give one seed, one method "
            "and one model (seeds, methods and arms with --set)"
        )
    if grid.recipe.task.options.get("fold") != fold:
        raise UserError("--folds sets task.options.fold; remove --set task.options.fold")


def median_steps(scores: tuple[FoldScore, ...]) -> int:
    """Return the median of the steps at which the folds were scored: a whole number of at least 1."""
    return max(1, int(statistics.median(one.steps for one in scores)))


def summary(scores: list[FoldScore]) -> str:
    """Return one line: mean and standard deviation of the scores, and the first and last step with a fold's score."""
    values = [one.exact_match for one in scores]
    spread = statistics.stdev(values)
    first, last = min(one.steps for one in scores), max(one.steps for one in scores)
    steps = f"all at step {first:,}" if first == last else f"at steps {first:,} to {last:,}"
    return (
        f"{len(values)} folds: exact match {statistics.mean(values):.1f} % on average, standard deviation {spread:.1f} "
        f"points; {steps}"
    )


def folds_as_json(scores: tuple[FoldScore, ...]) -> dict[str, Any]:
    """Return the content of `folds.json`. The mean and the standard deviation are in per cent."""
    values = [one.exact_match for one in scores]
    return {
        "folds": [vars(one) for one in scores],
        "exact_match": round(statistics.mean(values), 4),
        "standard_deviation": round(statistics.stdev(values), 4),
        "steps": median_steps(scores),
    }


def _score(number: int, training: TrainStudy) -> FoldScore:
    (cell,) = training.grid.cells
    result = training.grid.folder.run(cell.run_id).result()
    if result is None:
        raise RunError(f"fold {number} is not finished; run the same command again to resume")
    steps = int(result.get("best_step") or result["steps"])
    rows = int(result["dev"]["examples"])
    return FoldScore(number, rows, float(result["dev"]["exact_match"]), steps)
