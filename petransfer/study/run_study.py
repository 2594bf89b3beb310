"""Run a study: check everything beforehand, then execute the unfinished runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from petransfer.data.benchmark_files import refuse_missing_folder
from petransfer.errors import UserError, refuse_moved
from petransfer.memory.cards import Card, this_card
from petransfer.memory.study_memory import PredictedRun, check_matched_sizes, predict_memory, refuse_too_large_for_cpu
from petransfer.models.hub_access import refuse_unreachable
from petransfer.models.registry import is_embedded
from petransfer.plurals import count
from petransfer.recipe.stacking import reasons_not_stacked
from petransfer.study.folders import MARK
from petransfer.study.grid import Cell, data_notes
from petransfer.study.launched_processes import launched_process, refuse_launch, splits_tensors
from petransfer.study.model_checks import refuse_unusable_files, refuse_unusable_models
from petransfer.study.scheduling import GroupRuns, Scheduling
from petransfer.study.settings import Settings
from petransfer.study.slow_work import naming_slow_work
from petransfer.study.study import StudyGrid
from petransfer.study.used_rows import has_test_rows, notes_of
from petransfer.training.cpu.processor import available_cores
from petransfer.training.execution import check_graphs, refuse_missing_gpu, refuse_small_batch
from petransfer.user_paths import expanded

if TYPE_CHECKING:
    from petransfer.study.fine_tune import FineTune
    from petransfer.study.local_executor import Outcome
    from petransfer.study.resource_demands import Resources

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedStudy:
    """A study whose checks have passed.

    Attributes:
        group: Function that groups runs into stacks. None: each run is trained alone.
        ray: The connected module `ray`. None: the runs are executed on this machine.
    """

    grid: StudyGrid
    settings: Settings
    scheduling: Scheduling
    group: GroupRuns | None = None
    ray: Any = None


def check_processes(grid: StudyGrid, scheduling: Scheduling, processes: int) -> None:
    """Check that the batches of all unfinished runs can be divided among the processes.

    Raises:
        UserError: A batch has too few examples, or `scheduling` excludes several processes.
    """
    scheduling.check(processes)
    for cell in grid.waiting if processes > 1 else ():
        refuse_small_batch(cell.spec.train.batch_size, processes)


def prepare_study(grid: StudyGrid, settings: Settings, scheduling: Scheduling) -> PreparedStudy:
    """Check a study before anything is written: launcher, models, data, memory and cluster.

    Only the leading process makes all checks. Without the setting `dev_only`, runs that finished with this setting
    count as unfinished from now on.

    Raises:
        UserError: A run cannot be executed with these settings.
    """
    refuse_launch(cell.spec for cell in grid.selected)
    data_dir = grid.recipe.data_dir
    settings = replace(settings, data_dir=expanded(data_dir).resolve() if data_dir else None)
    place = launched_process()
    if not place.leads:
        return PreparedStudy(grid, settings, scheduling)
    if not settings.dev_only:
        _reopen_unscored(grid)
    alone = not place.shared and scheduling.executor == "local"
    card = None if settings.cpu or scheduling.executor == "ray" else this_card()
    if card:
        for cell in grid.waiting:
            card.check_bits(cell.spec.method.bits)
    checkpointing = settings.execution.checkpointing
    if settings.execution.cuda_graphs:
        refuse_missing_gpu(card is not None or scheduling.executor == "ray")
        for cell in grid.waiting:
            check_graphs(cell.spec, checkpointing=checkpointing, processes=place.count)
    # MLflow has one active run in a process.
    scheduling = scheduling.without_stacks_if("mlflow" in settings.log_with, "--log-with mlflow")
    group = scheduling.grouping(checkpointing, lambda: card.bytes if card else None) if alone else None
    if scheduling.executor == "local":
        # the user's own rows are also found beside the recipe, without this folder
        if settings.data_dir and grid.waiting and grid.recipe.task.name != "lines":
            refuse_missing_folder(settings.data_dir)
        refuse_unusable_models(grid)
    # Only stacks of a size that the user gave are checked. Stacks of `auto` are made small enough to fit.
    stacked = group if scheduling.stack_size else None
    predicted = [] if settings.force else _predicted_memory(grid, checkpointing, card, scheduling.executor, stacked)
    if scheduling.executor == "local":  # the nodes of a cluster have networks and caches of their own
        refuse_unreachable((cell.spec.checkpoint for cell in grid.waiting), with_weights=True)
        with naming_slow_work("checking every row with the model's tokenizer"):
            refuse_unusable_files(grid, settings.scored_parts)
    for prediction in predicted:
        if prediction.refused:
            raise UserError(prediction.problem)
    check_matched_sizes([cell.spec for cell in grid.waiting], grid.recipe.data_dir)
    _log_notes(grid, scheduling)  # not before the checks: a refusal prints only its error
    return PreparedStudy(grid, settings, scheduling, group, _connect(grid, scheduling))


def _predicted_memory(
    grid: StudyGrid, checkpointing: bool, card: Card | None, executor: str, group: GroupRuns | None
) -> list[PredictedRun]:
    """Predict the memory of the unfinished runs on this machine. Empty if it cannot be predicted.

    Args:
        group: Function that groups runs into stacks. None: each run is checked alone.

    Raises:
        UserError: A run does not fit the card.
    """
    if card and not splits_tensors():
        return _refuse_what_does_not_fit(grid, checkpointing, card, group(grid.waiting) if group else ())
    if not card and executor == "local":
        return refuse_too_large_for_cpu([cell.spec for cell in grid.waiting], grid.options_for, checkpointing)
    return []


def _reopen_unscored(grid: StudyGrid) -> None:
    """Mark finished runs without a test score as unfinished, if the data has test rows.

    A run with the setting `dev_only` has saved no weights, so it must be trained again to be scored.
    """
    folders = [grid.folder.run(cell.run_id) for cell in grid.selected]
    unscored = [folder for folder in folders if folder.done and not folder.scored]
    if not unscored or not has_test_rows(grid):
        return
    for folder in unscored:
        with folder.claim() as claimed:
            if claimed and not folder.scored:  # another process may have repeated the run meanwhile
                folder.reopen()
    again = count(len(unscored), "run")
    logger.info(f"{again} without a test score and without saved weights (dev_only=True) will be trained again")


def execute_study(prepared: PreparedStudy, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Execute the undamaged, unfinished runs of a prepared study. The study's folder must exist.

    A failed run does not stop the other runs. `tick` is called several times a second.

    Raises:
        FolderMoved: The study's folder was moved or removed meanwhile.
    """
    study = prepared.grid.folder.path
    marked = (study / MARK).exists()
    outcome = _execute(prepared, tick, marked)
    if marked:
        refuse_moved(study, MARK)
    return outcome


def _execute(prepared: PreparedStudy, tick: Callable[[], None], marked: bool) -> Outcome:
    from petransfer.study.fine_tune import FineTune
    from petransfer.study.local_executor import execute

    grid, settings, scheduling = prepared.grid, prepared.settings, prepared.scheduling
    damaged = grid.damaged
    cells = [cell for cell in grid.selected if cell.run_id not in damaged]
    job = FineTune(settings, marked)
    threads = settings.execution.threads
    if prepared.ray:
        return _execute_on_ray(prepared, cells, job, tick)
    if launched_process().shared:
        from petransfer.study.process_group import execute_together

        return execute_together(cells, grid.folder, job, threads, tick, settings.cpu)
    workers = scheduling.workers or _default_workers(grid, settings.cpu)
    return execute(cells, grid.folder, job, workers, threads, tick, prepared.group)


def _log_notes(grid: StudyGrid, scheduling: Scheduling) -> None:
    if not grid.waiting:
        return
    replaced_note = grid.replaced_note  # reads the folder's recipe and expands it
    if replaced_note:
        logger.warning(replaced_note)
    # the nodes of a cluster have tokenizers of their own
    for line in notes_of(grid) if scheduling.executor == "local" else data_notes(grid.recipe):
        logger.info(line)
    for line in reasons_not_stacked(cell.spec for cell in grid.waiting) if scheduling.stack_size > 1 else ():
        logger.info(line)


def _refuse_what_does_not_fit(
    grid: StudyGrid, checkpointing: bool, card: Card, stacks: Sequence[Sequence[Cell]]
) -> list[PredictedRun]:
    """Raise UserError if a run does not fit the GPU. Log the runs with gradient checkpointing. Return all."""
    specs, sizes = [cell.spec for cell in grid.waiting], stack_sizes(stacks)
    predicted = predict_memory(specs, card.bytes, checkpointing, sizes, capability=card.capability)
    for run in predicted:
        line = run.line(grid.options_for(run.spec))
        if run.fit and not run.fit.fits:
            raise UserError(f"{line}; --force starts the run anyway")
        if run.fit and run.fit.turned_on:
            logger.info(line)
    return predicted


def stack_sizes(stacks: Sequence[Sequence[Cell]]) -> dict[str, int]:
    """Return the size of each run's stack, by run id."""
    return {cell.run_id: len(stack) for stack in stacks for cell in stack}


def _connect(grid: StudyGrid, scheduling: Scheduling) -> Any:
    if scheduling.executor != "ray" or not grid.waiting:
        return None
    from petransfer.study.ray_executor import connect

    return connect(scheduling.address)


def _execute_on_ray(prepared: PreparedStudy, cells: Sequence[Cell], job: FineTune, tick: Callable[[], None]) -> Outcome:
    from petransfer.study.ray_executor import execute_on_ray, smallest_card

    grid, settings, ray = prepared.grid, prepared.settings, prepared.ray
    threads, checkpointing = settings.execution.threads or 1, settings.execution.checkpointing
    card = None if settings.cpu else smallest_card(ray)
    cards = max(1, int(ray.cluster_resources().get("GPU", 0)))
    group = prepared.scheduling.grouping(checkpointing, lambda: card, cards)
    demands = _demands(grid, settings, card, threads)
    workers = prepared.scheduling.workers
    return execute_on_ray(cells, grid.folder, job, demands, workers, threads, tick, ray, group)


def _demands(grid: StudyGrid, settings: Settings, card: int | None, threads: int) -> dict[str, Resources]:
    """Return the resources that each run requests from a node, by run id."""
    from petransfer.study.resource_demands import resources_of

    found: dict[object, Resources] = {}
    demands: dict[str, Resources] = {}
    for cell in grid.selected:
        spec = cell.spec
        key = (spec.checkpoint, spec.method, spec.train.batch_size, spec.train.optimizer, spec.task)
        if key not in found:
            checkpointing = settings.execution.checkpointing
            found[key] = resources_of(spec, card, threads, checkpointing, settings.force, grid.options_for(spec))
        demands[cell.run_id] = found[key]
    return demands


def _default_workers(grid: StudyGrid, cpu: bool) -> int:
    import torch

    embedded = all(is_embedded(cell.spec.checkpoint.name) for cell in grid.cells)
    on_gpu = torch.cuda.is_available() and not cpu
    # one worker per core for the small checkpoints that ship with petransfer; otherwise one
    return available_cores() if embedded and not on_gpu else 1
