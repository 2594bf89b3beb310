"""Make a study with one arm from a model and data, for `petransfer train` and `petransfer.train`."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.errors import UserError
from petransfer.memory.advice import TRAIN_OPTIONS, Unpredictable, suggestion
from petransfer.memory.cards import Card, gigabytes, host_bytes
from petransfer.memory.study_memory import step_spec_of, trained_tokens_of_run
from petransfer.plurals import count
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.folders import StudyFolder
from petransfer.study.launched_processes import splits_tensors
from petransfer.study.model_checks import refuse_unusable_models
from petransfer.study.quick_recipe import recipe_for, with_absolute_paths
from petransfer.study.study import StudyGrid, grid_of
from petransfer.study.train_folder import choose_folder
from petransfer.study.train_options import recipe_of_options
from petransfer.study.train_request import TrainRequest
from petransfer.study.used_rows import rows_of_parts

if TYPE_CHECKING:
    from petransfer.memory.planner import Fit

logger = logging.getLogger(__name__)

# If a training does not fit and its longest example has more tokens, the message shows how to leave out long rows.
_LONG = 1024

# With fewer rows than this in dev or test, one row changes the score by more than 5 points.
FEW_ROWS = 20


@dataclass(frozen=True)
class TrainStudy:
    """A training that is ready to start.

    Attributes:
        recipe: The recipe's content, with paths as the user wrote them.
        grid: The runs of the training, one per seed, and the folder.
        note: Why the usual folder is not used. Otherwise empty.
        out_given: Whether the user chose the folder.
    """

    recipe: dict[str, Any]
    grid: StudyGrid
    note: str = ""
    out_given: bool = False

    @property
    def rows(self) -> dict[str, int]:
        """The number of used rows in train, dev and test."""
        return rows_of_parts(self.grid)


def train_study(
    model: str, data: str, request: TrainRequest, overrides: list[str], out: Path | None, has_bf16: bool
) -> TrainStudy:
    """Make the recipe of a training and choose the folder. Nothing is written.

    `has_bf16`: whether there is a GPU that computes in bf16.

    Raises:
        UserError: An argument is not valid, or `out` holds a training run with other settings.
    """
    content = recipe_for(model, data, request, overrides, has_bf16)
    recipe = with_absolute_paths(recipe_of_options(content, overrides, request.steps_option))
    folder, note = choose_folder(recipe, out)
    grid = grid_of(recipe, folder)
    place = StudyFolder(folder, chosen_with=StudyFolder(folder).recipe_text())
    found = StudyGrid(grid.recipe, grid.cells, place, grid.cells)
    refuse_unusable_models(found)
    return TrainStudy(content, found, note, out is not None)


def small_data_note(rows: dict[str, int]) -> str:
    """Return a warning about dev or test sets that are too small. Empty for large sets."""
    small = [count(rows[part], f"{part} row") for part in ("dev", "test") if rows[part] < FEW_ROWS]
    if not small:
        return ""
    return (
        f"note: there {'is' if small[0].startswith('1 ') else 'are'} only {' and '.join(small)}, so the scores are not "
        "reliable. Add data, hold out more rows with --dev 0.3 and --test 0.3, or score every row with --folds 5"
    )


def memory_of(grid: StudyGrid, card: Card | None, checkpointing: bool) -> Fit:
    """Return the predicted memory of the first run's training.

    Args:
        card: The GPU. None: train on the CPU.
        checkpointing: Whether gradient checkpointing is on.

    Raises:
        UserError: The checkpoint is already quantised, or cannot be found, or the GPU has no bf16.
    """
    from petransfer.memory.planner import plan  # imports torch
    from petransfer.models.architecture import configuration
    from petransfer.models.quiet_libraries import silence_libraries

    silence_libraries()
    spec = grid.cells[0].spec
    if card:
        card.check_bits(spec.method.bits)
    config, own_head = configuration(spec.checkpoint)
    step_spec = step_spec_of(spec, checkpointing, "cuda" if card else "cpu", config)
    if card and card.capability:
        step_spec = replace(step_spec, capability=card.capability)
    limit = card.bytes if card else host_bytes()
    return plan(config, spec.checkpoint, step_spec, own_head, limit, trained_tokens_of(spec))


def memory_if_predictable(grid: StudyGrid, card: Card | None, checkpointing: bool) -> Fit | None:
    """Call `memory_of`. If the architecture does not allow a prediction, log a warning and return None."""
    try:
        return memory_of(grid, card, checkpointing)
    except Unpredictable as error:
        logger.warning("%s; the training starts without this check", error.problem)
        return None


@functools.lru_cache(maxsize=1)
def trained_tokens_of(spec: RunSpec) -> tuple[int, ...]:
    """Return the tokens whose embeddings a run trains with `embeddings: new` or `embeddings: used`."""
    from petransfer.models.architecture import configuration  # imports transformers

    return trained_tokens_of_run(spec, configuration(spec.checkpoint)[0])


def refuse_too_large(grid: StudyGrid, fit: Fit, force: bool) -> None:
    """Raise UserError if a training does not fit the memory and `force` is False."""
    if fit.fits or force or splits_tensors():
        return
    name, step = grid.cells[0].spec.checkpoint.name, fit.step_spec
    what = f"{gigabytes(fit.card or 0)} of this {'card' if step.device == 'cuda' else 'machine'}"
    problem = f"does not fit into the {what}: one example of {fit.longest_example} needs {gigabytes(fit.needed)}"
    is_long = max(step.input_length, step.target_length) > _LONG
    shorter = f"; --max-length {_LONG} --skip-bad-rows leaves out longer rows" if is_long else ""
    raise UserError(
        f"{name} {fit if fit.lacks_bf16 else problem}{suggestion(fit.advice, TRAIN_OPTIONS)}{shorter}; "
        "--force starts the training anyway"
    )
