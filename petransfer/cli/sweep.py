"""The verb `sweep`: train with several learning rates, and score on dev."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

import petransfer.cli.options as opt
from petransfer.cli.run import CommandHooks, check_and_launch, grid_from_options, run_grid
from petransfer.cli.table_layout import print_table
from petransfer.cli.terminal_text import print_text
from petransfer.errors import UserError
from petransfer.plurals import count
from petransfer.recipe.schema import Recipe
from petransfer.report import run_table as tables
from petransfer.report import sweep as shown
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.shard import parse_shard
from petransfer.study.study import StudyGrid
from petransfer.study.sweep import open_sweep, sweep_cells, sweep_folder, update_sweep
from petransfer.training.execution import Execution


def sweep(
    recipe: opt.RecipeArgument = None,
    recipe_option: opt.RecipeName = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            "--learning-rates",
            "--rates",
            help="Learning rates to try for all arms and methods, such as 1e-3,2e-3,4e-3.",
        ),
    ] = None,
    factors: Annotated[
        str | None,
        typer.Option(
            help="Try these multiples of the recipe's learning rates, instead of --learning-rates. Default: 0.5,1,2."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Optimiser steps of each run. 0: as in the recipe.")] = 0,
    seeds: opt.Seeds = "0",
    sets: opt.Sets = None,
    family: opt.FamilyName = None,
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
    save_every: opt.SaveEvery = 60.0,
    checkpointing: opt.Checkpointing = False,
    cpu: opt.Cpu = False,
    force: opt.Force = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Show what would be trained, and stop before training.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Find the best learning rate for each arm (kind of pretraining) and method of a recipe.

    Each arm and method is trained at several learning rates and scored on the dev rows; the test set is not used.
    The best learning rates are printed in the format of a recipe.
    """
    whole = grid_from_options(
        opt.recipe_name(recipe, recipe_option), sets, family, None, None, out, data_dir
    )  # all runs that `run` would execute
    only_seeds = [*(sets or []), "more_seeds={}"]  # --seeds names all seeds of a sweep
    part = grid_from_options(opt.recipe_name(recipe, recipe_option), only_seeds, family, seeds, arms, out, data_dir)
    cells = sweep_cells(
        part.cells, _numbers("--learning-rates", learning_rates), _factors(learning_rates, factors), steps
    )
    mine = cells if shard is None else parse_shard(shard).of(cells)
    plain = part.recipe.model_copy(update={"effects": []})  # a sweep computes no effects
    study = StudyGrid(plain, cells, sweep_folder(part.folder), mine)
    if plan_only:
        part.folder.check(part.recipe.name)
        _plan(study, as_json)
        return
    scheduling = Scheduling(workers, executor, address, stack)
    check_and_launch(study, scheduling, processes)
    execution = Execution(micro_batch, threads, save_every, study.log_every, checkpointing=checkpointing)
    settings = Settings(execution, cpu=cpu, force=force, dev_only=True)
    hooks = _hooks(study, whole.recipe, [*whole.cells, *part.cells], part.folder)
    run_grid(study, hooks, settings, scheduling, as_json)


def _factors(learning_rates: str | None, factors: str | None) -> list[float]:
    if learning_rates is not None and factors is not None:
        raise UserError("--learning-rates and --factors both set the learning rates; give only one of them")
    return _numbers("--factors", "0.5,1,2" if factors is None else factors)


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        found = [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(0 < value < float("inf") for value in found):
        raise UserError(f"{option} {text}: write numbers above 0, separated by commas, such as 0.5,1,2")
    return found


def _hooks(study: StudyGrid, recipe: Recipe, own: list[Cell], folder: StudyFolder) -> CommandHooks:
    def end(as_json: bool) -> None:
        content = update_sweep(study.recipe, own, study.cells, folder)
        if as_json:
            print(json.dumps(content, indent=1))
            return
        _print_end(content, study.recipe.name)

    return CommandHooks(lambda: open_sweep(recipe, folder), end, shown.plain_line)


def _print_end(content: dict[str, Any], title: str) -> None:
    groups = content["groups"]
    print_table(shown.terminal_table(groups, title))
    for line in shown.sentences(groups):
        print_text(line)
    print_text("learning rates with the best dev scores, for `train` in the recipe:")
    print(shown.snippet(content))


def _plan(study: StudyGrid, as_json: bool) -> None:
    rows = tables.rows_of(study.selected, study.folder)
    if as_json:
        rates = [{"learning_rate": row.cell.spec.train.learning_rate} for row in rows]
        runs = [one | rate for one, rate in zip(tables.as_json(rows), rates, strict=True)]
        print(json.dumps({"study": study.recipe.name, "runs": runs}, indent=1))
        return
    for row in rows:
        print_text(f"{row.cell.run_id}  {shown.plain_line(row)} | {count(row.cell.spec.train.steps, 'step')}")
    left = sum(row.cell.spec.train.steps for row in rows if row.status != "done")
    done = sum(row.status == "done" for row in rows)
    print_text(f"{count(len(rows), 'run')}, {done} done, {count(left, 'step')} to go; folder {study.folder.path}")
