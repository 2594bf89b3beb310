"""The verbs `run`, `plan` and `status`: execute, list and show the runs of a recipe."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import petransfer.cli.options as opt
from petransfer.api import write_results
from petransfer.cli.display import Display, View, report_outcome, study_label, study_score
from petransfer.cli.launcher import launch
from petransfer.cli.table_layout import print_meanings, print_table
from petransfer.cli.terminal_text import print_text
from petransfer.effects.study_effects import check_kinds, seed_demand
from petransfer.memory.advice import as_options
from petransfer.memory.cards import parse_card, this_card
from petransfer.memory.study_memory import PredictedRun, predict_memory, refuse_unusable_targets
from petransfer.plurals import count
from petransfer.pretraining import run_table as pretraining
from petransfer.pretraining.grid import expand_pretraining
from petransfer.recipe.loading import load_any_recipe
from petransfer.recipe.pretraining import PretrainRecipe
from petransfer.recipe.stacking import reasons_not_stacked
from petransfer.report import run_table as tables
from petransfer.report import sweep
from petransfer.study.durations import duration
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.launched_processes import launched_process
from petransfer.study.run_study import check_processes, execute_study, prepare_study, stack_sizes
from petransfer.study.scheduling import Scheduling, describe_stacks
from petransfer.study.settings import Settings
from petransfer.study.study import StudyGrid, grid_of, load_grid, recipe_file
from petransfer.training.execution import Execution
from petransfer.training.tracker_names import check_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommandHooks:
    """The functions and texts that differ between `run`, `sweep` and `train`.

    Attributes:
        open_folder: Creates the study's folder and writes the recipe. Called after all checks.
        print_end: Function of (as_json). Prints the results.
        line: Describes a run in one line. An empty line is not printed.
        done: Function of the elapsed time as text. Returns the last line of the output. None: the usual line, with the
            number of runs and the folder.
        finished: Last line of the output if all runs had finished before this command. None: the usual line.
        begin: Prints a description of the runs. Called after all checks, before anything is written.
        name: The beginning of the progress bar's line, such as `fold 2`.
        score_name: Name of the score in the progress bar's line.
    """

    open_folder: Callable[[], None]
    print_end: Callable[[bool], None]
    line: Callable[[Any], str] = tables.plain_line
    done: Callable[[str], str] | None = None
    finished: str | None = None
    begin: Callable[[], None] = lambda: None
    name: str = ""
    score_name: str = "exact match on dev"


def grid_from_options(
    name: str,
    sets: list[str] | None,
    family: str | None,
    seeds: str | None,
    arms: str | None,
    out: Path | None,
    data: Path | None,
    shard: str | None = None,
) -> StudyGrid:
    """Return the grid of a recipe with the command's options applied."""
    options: dict[str, Any] = {
        "family": family,
        "seeds": None if seeds is None else opt.parse_seeds(seeds),
        "arms": opt.parse_names(arms),
        "data_dir": data,
    }
    grid = load_grid(name, sets or [], options, out, shard)
    check_kinds(grid.recipe)
    return grid


def run(
    recipe: opt.RecipeArgument = None,
    recipe_option: opt.RecipeName = None,
    sets: opt.Sets = None,
    family: opt.FamilyName = None,
    seeds: opt.Seeds = None,
    arms: opt.Arms = None,
    out: opt.Out = None,
    data_dir: opt.DataDir = None,
    shard: opt.ShardName = None,
    workers: opt.Workers = 0,
    processes: opt.Processes = 1,
    executor: opt.Executor = "local",
    address: opt.Address = None,
    threads: opt.Threads = 0,
    micro_batch: opt.MicroBatch = 0,
    stack: opt.Stack = "auto",
    by_generation: Annotated[
        bool,
        typer.Option(
            "--by-generation",
            help="Score the test set by generating a text for every example. Also report the number of examples "
            "whose score from one forward pass differs.",
        ),
    ] = False,
    save_every: opt.SaveEvery = 60.0,
    checkpointing: opt.Checkpointing = False,
    cuda_graphs: opt.CudaGraphs = False,
    log_with: opt.LogWith = None,
    cpu: opt.Cpu = False,
    force: opt.Force = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Delete and repeat finished runs whose files are damaged.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Run every experiment of a recipe. Finished runs are skipped; interrupted runs resume."""
    grid = grid_from_options(opt.recipe_name(recipe, recipe_option), sets, family, seeds, arms, out, data_dir, shard)
    scheduling = Scheduling(workers, executor, address, stack).without_stacks_if(cuda_graphs, "--cuda-graphs")
    trackers = check_trackers(log_with or [])
    check_and_launch(grid, scheduling, processes)
    for run_id in grid.repair() if repair and launched_process().leads else ():
        logger.info(f"{run_id} was damaged and is run again")
    execution = Execution(
        micro_batch, threads, save_every, grid.log_every, checkpointing=checkpointing, cuda_graphs=cuda_graphs
    )
    settings = Settings(execution, cpu=cpu, force=force, by_generation=by_generation, log_with=trackers)
    run_grid(grid, study_hooks(grid), settings, scheduling, as_json)


def check_and_launch(grid: StudyGrid, scheduling: Scheduling, processes: int) -> None:
    """Check the options. Launch several processes if requested, and exit with their code."""
    place = launched_process()
    check_processes(grid, scheduling, max(processes, place.count))
    if processes > 1 and not place.shared:
        raise typer.Exit(launch(processes))


def study_hooks(grid: StudyGrid) -> CommandHooks:
    """Return the hooks of a study."""
    anew = bool(grid.waiting)
    return CommandHooks(lambda: grid.folder.open(grid.recipe), lambda as_json: _print_end(grid, as_json, anew))


def _log_interrupted(grid: StudyGrid) -> None:
    """Log how many interrupted runs resume, and how many begin again."""
    folders = [(grid.folder.run(cell.run_id), cell.spec.canonical_json()) for cell in grid.waiting]
    resumes = [folder.has_state(identity) for folder, identity in folders if folder.status() == "interrupted"]
    if any(resumes):
        logger.info(f"resuming {count(sum(resumes), 'interrupted run')} from the last saved step")
    if not all(resumes):
        again = count(len(resumes) - sum(resumes), "interrupted run")
        logger.info(f"starting {again} again from the first step, because no saved step can be used")


def run_grid(grid: StudyGrid, hooks: CommandHooks, settings: Settings, scheduling: Scheduling, as_json: bool) -> None:
    """Execute the unfinished runs of a grid and print the results.

    Raises:
        typer.Exit: A run is not finished or is damaged (code above 0), or this process does not lead (code 0).
    """
    prepared = prepare_study(grid, settings, scheduling)
    place = launched_process()
    if not place.leads:
        execute_study(prepared)
        raise typer.Exit
    for line in (grid.dropped_line, seed_demand(grid.recipe, grid.cells).line if grid.waiting else ""):
        if line:
            logger.info(line)
    hooks.begin()
    _log_interrupted(grid)
    hooks.open_folder()
    started = time.monotonic()
    done_before = len(grid.selected) - len(grid.waiting) - len(grid.damaged)
    _log_unrepeated(grid, done_before, settings.by_generation)
    if not place.shared and not grid.waiting:
        hooks.print_end(as_json)
        _exit_if_damaged(grid)
        finished = "the run" if done_before == 1 else f"all {done_before:,} runs"
        _log_line(hooks.finished if hooks.finished is not None else f"{finished} finished before; nothing to do")
        return
    with Display(_view(grid, hooks), quiet=as_json) as tick:
        outcome = execute_study(prepared, tick)
    hooks.print_end(as_json)
    code = report_outcome(outcome, len(grid.selected))
    if code:
        raise typer.Exit(code)
    _exit_if_damaged(grid)
    took = duration(time.monotonic() - started)
    usual = f"{count(len(grid.selected), 'run')} done in {took}; see {grid.folder.path}"
    _log_line(hooks.done(took) if hooks.done else usual)


def _log_unrepeated(grid: StudyGrid, done_before: int, by_generation: bool) -> None:
    """Log which runs are damaged, and how to score runs by generation that finished before this command."""
    for damage in grid.damaged.values():
        logger.warning(f"damaged: {damage}; run it again with `{grid.repair_command}`")
    _log_line(grid.weights_advice)
    if by_generation and done_before:
        command = f"`petransfer eval {grid.folder.path}/runs/RUN --by-generation`"
        logger.info(
            f"{count(done_before, 'finished run')} will not be scored again; to score one by generation, use {command}"
        )


def _view(grid: StudyGrid, hooks: CommandHooks) -> View:
    return View(
        grid.recipe.name,
        lambda: tables.rows_of(grid.selected, grid.folder),
        hooks.line,
        study_label,
        study_score,
        hooks.score_name,
        hooks.name,
    )


def _log_line(text: str) -> None:
    if text:
        logger.info(text)


def _exit_if_damaged(grid: StudyGrid) -> None:
    if grid.damaged:
        raise typer.Exit(2)


def _print_end(grid: StudyGrid, as_json: bool, anew: bool) -> None:
    effects = write_results(grid, anew=anew)
    rows = tables.rows_of(grid.cells, grid.folder)
    if as_json:
        content = {"study": grid.recipe.name, "runs": tables.as_json(rows), "effects": effects["effects"]}
        content |= {"judged_by": effects["judged_by"]} if "judged_by" in effects else {}
        print(json.dumps(content, indent=1))
        return
    selected = {cell.run_id for cell in grid.selected}
    shown = [row for row in rows if row.cell.run_id in selected]
    table = tables.terminal_table(shown, grid.recipe.name, tables.ROWS)
    print_table(table)
    print_meanings(table)
    lines = [*tables.weight_lines(rows), *tables.generated_lines(rows)]
    for line in [*lines, *effects["sentences"], *effects["missing"]]:
        print_text(line)


def plan(
    recipe: opt.RecipeArgument = None,
    recipe_option: opt.RecipeName = None,
    sets: opt.Sets = None,
    family: opt.FamilyName = None,
    seeds: opt.Seeds = None,
    arms: opt.Arms = None,
    out: opt.Out = None,
    data_dir: opt.DataDir = None,
    shard: opt.ShardName = None,
    card: Annotated[
        str | None,
        typer.Option(
            help="Predict whether the runs fit a card: its memory or name, such as 12GB. Default: this machine's card."
        ),
    ] = None,
    stack: opt.Stack = "auto",
    checkpointing: opt.Checkpointing = False,
    as_json: opt.Json = False,
) -> None:
    """List the runs of a recipe with their optimiser steps and progress, and predict their memory. Loads no model."""
    scheduling = Scheduling(stack=stack)
    study = grid_from_options(opt.recipe_name(recipe, recipe_option), sets, family, seeds, arms, out, data_dir, shard)
    study.folder.check(study.recipe.name, to_write=False)
    refuse_unusable_targets(cell.spec for cell in study.waiting)
    rows = tables.rows_of(study.selected, study.folder)
    given_card = parse_card(card) if card is not None else this_card()
    group = scheduling.grouping(checkpointing, lambda: given_card.bytes if given_card else None)
    for row in () if as_json else rows:  # print the runs first, because the prediction of the memory takes time
        print_text(f"{row.cell.run_id}  {tables.plain_line(row)} | {count(row.cell.spec.train.steps, 'step')}")
    stacks = group(study.waiting) if group else []
    specs = [cell.spec for cell in study.selected]
    predicted = (
        predict_memory(specs, given_card.bytes, checkpointing, stack_sizes(stacks), capability=given_card.capability)
        if given_card
        else []
    )
    if as_json:
        print(json.dumps(_plan_as_json(study, rows, predicted, stacks), indent=1))
        return
    for prediction in predicted:
        print_text(prediction.line(study.options_for(prediction.spec)))
    for line in [describe_stacks(stacks), *reasons_not_stacked(cell.spec for cell in study.waiting)] if stacks else ():
        print_text(line)
    for line in (study.dropped_line, seed_demand(study.recipe, study.cells).line, study.replaced_note):
        if line:
            print_text(line)
    print_text(_progress_line(study, rows, is_shard=bool(shard)))


def _progress_line(study: StudyGrid, rows: Sequence[tables.RunRow], is_shard: bool) -> str:
    """Return the numbers of runs, of finished runs and of the remaining steps, and the folder of a study."""
    done = sum(row.status == "done" for row in rows)
    left = sum(row.cell.spec.train.steps for row in rows if row.status != "done")
    runs = f"{len(rows)} of {count(len(study.cells), 'run')}" if is_shard else count(len(rows), "run")
    return f"{runs}, {done} done, {count(left, 'step')} to go; folder {study.folder.path}"


def failure_lines(rows: Sequence[tables.RunRow | pretraining.PretrainingRow]) -> list[str]:
    """Return one line per error, with the first run that failed with this error."""
    runs: dict[str, list[str]] = {}
    for row in rows:
        if row.failure:
            runs.setdefault(row.failure, []).append(row.cell.run_id)
    return [
        f"failed: {ids[0]}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}: {why}" for why, ids in runs.items()
    ]


def _plan_as_json(
    study: StudyGrid, rows: Sequence[tables.RunRow], predicted: Sequence[PredictedRun], stacks: Sequence[Sequence[Cell]]
) -> dict[str, Any]:
    return {
        "study": study.recipe.name,
        "runs": tables.as_json(rows),
        "memory": [
            {
                "name": run.name,
                "line": run.line(study.options_for(run.spec)),
                "fits": run.fit and run.fit.fits,
                "checkpointing": run.fit and run.fit.step_spec.checkpointing,
                "advice": as_options(run.fit.advice, study.options_for(run.spec)) if run.fit else [],
            }
            for run in predicted
        ],
        "stacks": [[cell.run_id for cell in stack] for stack in stacks if len(stack) > 1],
        "dropped_effects": list(study.dropped_effects),
    }


def _title(folder: Path, name: str) -> str:
    """Return the title of a study: its name, after the folder if the folder has another name."""
    return name if folder.name == name else f"{folder} ({name})"


def status(
    study: Annotated[
        Path, typer.Argument(help="Folder of the study or pretraining, such as results/lora-scan or pretrained/nano.")
    ],
    as_json: opt.Json = False,
) -> None:
    """Show the progress of the runs of a study or of a pretraining."""
    recipe, folder = load_any_recipe(str(recipe_file(study))), StudyFolder(study)
    swept: list[sweep.SweepGroup] = []
    if isinstance(recipe, PretrainRecipe):
        pretrained = pretraining.rows_of(expand_pretraining(recipe), folder)
        lines = [f"{count(len(pretrained), 'run')}: {sum(row.status == 'done' for row in pretrained)} done"]
        lines += failure_lines(pretrained)
        shown, table = pretraining.as_json(pretrained), pretraining.terminal_table(pretrained, recipe.name)
    else:
        grid = grid_of(recipe, study)
        rows, swept = tables.rows_of(grid.cells, folder), sweep.groups_of(grid.cells, folder)
        lines = [tables.counts([row.status for row in rows]), sweep.progress_line(folder), *failure_lines(rows)]
        lines += [f"to repeat only the damaged runs: `{grid.repair_command}`"] if grid.damaged else []
        lines.append(grid.weights_note)
        shown, table = tables.as_json(rows), tables.terminal_table(rows, _title(study, recipe.name), tables.ROWS)
    if as_json:
        print(json.dumps({"study": recipe.name, "runs": shown, "sweep": swept}, indent=1))
        return
    print_table(table)
    print_meanings(table)
    if swept:
        print_table(sweep.terminal_table(swept, recipe.name))
    for line in filter(None, lines):
        print_text(line)
