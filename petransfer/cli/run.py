"""`run`, `plan` and `status`: a recipe's grid, carried out, foreseen or looked at."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import petransfer.cli.options as opt
from petransfer.cli.display import Display, View, print_table, report_outcome
from petransfer.cli.launcher import launch
from petransfer.cli.run_options import Ways, connected, in_stacks, on_ray
from petransfer.effects.contrasts import demand, family_name, update_effects
from petransfer.errors import UserError
from petransfer.memory.advice import Words, in_options, of_recipe
from petransfer.memory.card_sizes import card_bytes
from petransfer.memory.study_memory import Place, find_sizes, foresee, this_card
from petransfer.models.registry import is_embedded
from petransfer.pretraining import run_table as pretraining
from petransfer.pretraining.grid import expand_pretraining
from petransfer.recipe.loading import load_either, load_reduced
from petransfer.recipe.pretraining import PretrainRecipe
from petransfer.recipe.run_spec import RunSpec
from petransfer.recipe.schema import Recipe
from petransfer.recipe.stacking import why_alone
from petransfer.report import run_table as tables
from petransfer.report import sweep
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, expand, method_of, notes, resolve
from petransfer.study.launched_processes import refuse_launch, splits_tensors, this_place
from petransfer.study.shard import parse_shard
from petransfer.training.execution import Execution, refuse_small_batch


@dataclass(frozen=True)
class Study:
    """A resolved recipe with its grid and folder. mine: the part of the grid that is asked for, all unless sharded.

    dropped: effects that the chosen arms leave no room for.
    """

    recipe: Recipe
    cells: list[Cell]
    folder: StudyFolder
    mine: list[Cell]
    dropped: Sequence[str] = ()

    @property
    def dropped_line(self) -> str:
        """What is said of them; nothing where there are none."""
        arms = ", ".join(self.recipe.arms)
        return f"not asked, for they need other arms than {arms}: {', '.join(self.dropped)}" if self.dropped else ""

    @property
    def waiting(self) -> list[Cell]:
        """Those that are asked for and not done."""
        return [cell for cell in self.mine if not self.folder.run(cell.run_id).done]


@dataclass(frozen=True)
class Kind:
    """What parts the runs of a study from those of its sweep.

    begin: makes the folder. end: prints how things stand, as JSON where that is asked for. table, line: of a `View`.
    dev_only: of `Settings`.
    """

    begin: Callable[[], None]
    end: Callable[[bool], None]
    table: Callable[[Sequence[Any], str, int | None], Table] = tables.terminal_table
    line: Callable[[Any], str] = tables.plain_line
    dev_only: bool = False


def study_of(
    name: str,
    sets: list[str] | None,
    family: str | None,
    seeds: str | None,
    arms: str | None,
    out: Path | None,
    data: Path | None,
    shard: str | None = None,
) -> Study:
    """The study that options describe, its recipe resolved and its grid expanded."""
    part = parse_shard(shard) if shard else None
    options: dict[str, Any] = {
        "family": family,
        "seeds": whole_numbers(seeds) if seeds else None,
        "arms": arms.split(",") if arms else None,
        "data_dir": data,
    }
    asked, dropped = load_reduced(name, sets or [], options)
    recipe = resolve(asked)
    cells = expand(recipe)
    folder = StudyFolder(out or Path("results") / recipe.name)
    return Study(recipe, cells, folder, part.of(cells) if part else cells, dropped)


def whole_numbers(text: str) -> list[int]:
    """The numbers that `0,1,2` or `0-5` stands for."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, sign, last = part.partition("-")
            numbers += range(int(first), int(last) + 1) if sign else [int(first)]
    except ValueError:
        raise UserError(f"--seeds {text}: write whole numbers as 0,1,2 or 0-5") from None
    if not numbers:
        raise UserError(f"--seeds {text}: no seed in it; write whole numbers as 0,1,2 or 0-5")
    return numbers


def run(
    recipe: opt.RecipeName = "lora-scan",
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
        typer.Option("--by-generation", help="Score by generating every test answer; says where one pass differs."),
    ] = False,
    save_every: opt.SaveEvery = 60.0,
    checkpointing: opt.Checkpointing = False,
    cpu: opt.Cpu = False,
    force: opt.Force = False,
    as_json: opt.Json = False,
) -> None:
    """Carry a recipe's runs out, skip what is done, go on where an interruption left off, and print the table."""
    study = study_of(recipe, sets, family, seeds, arms, out, data_dir, shard)
    ways = Ways(workers, executor, address, stack, by_generation)
    ready(study, ways, processes)
    execution = Execution(micro_batch, threads, save_every, log_every(study), checkpointing=checkpointing)
    carry_out(study, own_runs(study), execution, ways, cpu, force, as_json)


def ready(study: Study, ways: Ways, processes: int) -> None:
    """Checks ways and batches; where several processes are to share runs, starts them, and this one ends with them."""
    place = this_place()
    sharing = max(processes, place.count)
    ways.check(sharing)
    for cell in study.waiting if sharing > 1 else ():
        refuse_small_batch(cell.spec.train.batch_size, sharing)
    if processes > 1 and not place.shared:
        raise typer.Exit(launch(processes))


def own_runs(study: Study) -> Kind:
    """A study's own runs, which end in its table and effects."""
    return Kind(lambda: study.folder.open(study.recipe), lambda as_json: _print_end(study, as_json))


def say_notes(recipe: Recipe) -> None:
    """What the user should know of their own data, on stderr."""
    for note in notes(recipe):
        print(note, file=sys.stderr)


def carry_out(
    study: Study, kind: Kind, execution: Execution, ways: Ways, cpu: bool, force: bool, as_json: bool
) -> None:
    """Runs what is not done of a study, prints its end, and exits with a code of its own where that went wrong.

    Of several processes that share the runs only the first one does more than take part in them.
    """
    refuse_launch(cell.spec for cell in study.mine)
    place = this_place()
    if not place.leads:
        _execute(study, kind, execution, ways, cpu, force, quiet=True)
        raise typer.Exit
    kind.begin()
    if study.dropped_line:
        print(study.dropped_line, file=sys.stderr)
    card = None if cpu or ways.executor == "ray" else this_card()
    alone = not place.shared and ways.executor == "local"
    group = ways.group(execution.checkpointing, lambda: card) if alone else None
    started = time.monotonic()
    before = sum(study.folder.run(cell.run_id).done for cell in study.mine)
    if ways.by_generation and before:
        anew = f"`petransfer eval {study.folder.path}/runs/RUN --by-generation` scores one anew"
        print(f"{before} runs were done before and stay as they were scored; {anew}", file=sys.stderr)
    if not place.shared and before == len(study.mine):
        kind.end(as_json)
        print(f"all {len(study.mine)} runs were done before; nothing to do", file=sys.stderr)
        return
    _say_first(study, ways)
    if card and not force and not splits_tensors():
        stacks = group(study.waiting) if group and ways.at_once else ()  # those of `auto` were made to fit
        _refuse_what_cannot_fit(study, execution.checkpointing, card, stacks, as_json)
    find_sizes([cell.spec for cell in study.waiting], getattr(study.recipe, "data_dir", None))
    ray = connected(ways.address) if ways.executor == "ray" else None
    outcome = _execute(study, kind, execution, ways, cpu, force, quiet=as_json, ray=ray, group=group)
    kind.end(as_json)
    code = report_outcome(outcome, len(study.mine))
    if code:
        raise typer.Exit(code)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(study.mine)} runs done in {minutes:.1f} minutes; see {study.folder.path}", file=sys.stderr)


def _say_first(study: Study, ways: Ways) -> None:
    say_notes(study.recipe)
    short = demand(study.recipe, study.cells).line
    alone = why_alone(cell.spec for cell in study.waiting) if ways.at_once > 1 else []
    for line in [*([short] if short else []), *alone]:
        print(line, file=sys.stderr)


def _refuse_what_cannot_fit(
    study: Study, checkpointing: bool, card: int, stacks: Sequence[Sequence[Cell]], quiet: bool
) -> None:
    """Says too what fits only with checkpointing; each run turns it on by itself where it is trained."""
    words = words_of(study.recipe)
    for place in foresee([cell.spec for cell in study.waiting], card, checkpointing, _sizes(stacks)):
        line = place.line(words(place.spec))
        if place.fit and not place.fit.fits:
            raise UserError(f"{line}; --force tries all the same")
        if place.fit and place.fit.turned_on and not quiet:
            print(line, file=sys.stderr)


def words_of(recipe: Recipe) -> Callable[[RunSpec], Words]:
    """How what would help a run to fit is asked of `run` with this recipe."""
    methods = [method_of(part) for part in recipe.methods]
    return lambda spec: of_recipe(methods, spec)


def _sizes(stacks: Sequence[Sequence[Cell]]) -> dict[str, int]:
    return {cell.run_id: len(stack) for stack in stacks for cell in stack}


def log_every(study: Study) -> int:
    """Steps between lines of metrics."""
    steps = min(cell.spec.train.steps for cell in study.cells)
    return max(1, min(50, steps // 20))


def _execute(
    study: Study,
    kind: Kind,
    execution: Execution,
    ways: Ways,
    cpu: bool,
    force: bool,
    quiet: bool,
    ray: Any = None,
    group: Any = None,
) -> Any:
    view = View(study.recipe.name, lambda: tables.rows_of(study.mine, study.folder), kind.table, kind.line)
    with Display(view, quiet) as tick:
        from petransfer.study.local_executor import execute
        from petransfer.study.single_run import FineTune, Settings

        data_dir = study.recipe.data_dir
        place = data_dir.resolve() if data_dir else None
        job = FineTune(Settings(execution, place, cpu, force, ways.by_generation, kind.dev_only))
        if ray:
            return on_ray(study.mine, study.folder, job, ways, tick, ray, words_of(study.recipe))
        if this_place().shared:
            from petransfer.study.process_group import execute_together

            return execute_together(study.mine, study.folder, job, execution.threads, tick, cpu)
        chosen = ways.workers or _default_workers(study, cpu)
        return execute(study.mine, study.folder, job, chosen, execution.threads, tick, group)


def _default_workers(study: Study, cpu: bool) -> int:
    """Small embedded models fill one core each; anything else has the machine to itself."""
    import torch

    embedded = all(is_embedded(cell.spec.checkpoint.name) for cell in study.cells)
    on_gpu = torch.cuda.is_available() and not cpu
    return (os.cpu_count() or 1) if embedded and not on_gpu else 1


def _print_end(study: Study, as_json: bool) -> None:
    with study.folder.locked():  # another shard may end at this moment
        rows = tables.rows_of(study.cells, study.folder)
        tables.write_csv(rows, study.folder.path / "table.csv", family_name(study.recipe))
        effects = update_effects(study.recipe, study.cells, study.folder)
    if as_json:
        content = {"study": study.recipe.name, "runs": tables.as_json(rows), "effects": effects["effects"]}
        content |= {"judged_by": effects["judged_by"]} if "judged_by" in effects else {}
        print(json.dumps(content, indent=1))
        return
    mine = {cell.run_id for cell in study.mine}
    print_table(tables.terminal_table([row for row in rows if row.cell.run_id in mine], study.recipe.name, tables.ROWS))
    lines = [*tables.weight_lines(rows), *tables.generated_lines(rows)]
    for line in [*lines, *effects["sentences"], *effects["missing"]]:
        print(line)


def plan(
    recipe: opt.RecipeName = "lora-scan",
    sets: opt.Sets = None,
    family: opt.FamilyName = None,
    seeds: opt.Seeds = None,
    arms: opt.Arms = None,
    out: opt.Out = None,
    data_dir: opt.DataDir = None,
    shard: opt.ShardName = None,
    card: Annotated[
        str | None, typer.Option(help="A card's memory, such as 12GB; this machine's unless given.")
    ] = None,
    stack: opt.Stack = "auto",
    checkpointing: opt.Checkpointing = False,
    as_json: opt.Json = False,
) -> None:
    """Show the grid: its runs, their steps and what is done. Nothing is loaded or downloaded."""
    ways = Ways(stack=stack)
    study = study_of(recipe, sets, family, seeds, arms, out, data_dir, shard)
    rows = tables.rows_of(study.mine, study.folder)
    room = card_bytes(card) if card is not None else this_card()
    for row in () if as_json else rows:  # what is foreseen takes its time
        print(f"{row.cell.run_id}  {tables.plain_line(row)} | {row.cell.spec.train.steps} steps", flush=True)
    group = ways.group(checkpointing, lambda: room)
    stacks = group(study.waiting) if group else []
    places = foresee([cell.spec for cell in study.mine], room, checkpointing, _sizes(stacks)) if room else []
    if as_json:
        print(json.dumps(_plan_as_json(study, rows, places, stacks), indent=1))
        return
    words = words_of(study.recipe)
    for place in places:
        print(place.line(words(place.spec)))
    for line in [in_stacks(stacks), *why_alone(cell.spec for cell in study.waiting)] if stacks else ():
        print(line)
    done = sum(row.status == "done" for row in rows)
    left = sum(row.cell.spec.train.steps for row in rows if row.status != "done")
    for line in (study.dropped_line, demand(study.recipe, study.cells).line):
        if line:
            print(line)
    whole = f" of {len(study.cells)}" if shard else ""
    print(f"{len(rows)}{whole} runs, {done} done, {left} steps to go; folder {study.folder.path}")


def _plan_as_json(
    study: Study, rows: Sequence[tables.Row], places: Sequence[Place], stacks: Sequence[Sequence[Cell]]
) -> dict[str, Any]:
    words = words_of(study.recipe)
    return {
        "study": study.recipe.name,
        "runs": tables.as_json(rows),
        "memory": [
            {
                "name": place.name,
                "line": place.line(words(place.spec)),
                "fits": place.fit and place.fit.fits,
                "checkpointing": place.fit and place.fit.demand.checkpointing,
                "advice": in_options(place.fit.advice, words(place.spec)) if place.fit else [],
            }
            for place in places
        ],
        "stacks": [[cell.run_id for cell in stack] for stack in stacks if len(stack) > 1],
        "dropped_effects": list(study.dropped),
    }


def status(
    study: Annotated[Path, typer.Argument(help="A folder such as results/lora-scan or pretrained/nano.")],
    as_json: opt.Json = False,
) -> None:
    """Show how a study's or a pretraining's runs stand."""
    kept = study / "recipe.yaml"
    if not kept.is_file():
        raise UserError(f"{study} is no study's folder: it has no recipe.yaml")
    recipe, folder = load_either(str(kept)), StudyFolder(study)
    swept: list[sweep.Group] = []
    if isinstance(recipe, PretrainRecipe):
        pretrained = pretraining.rows_of(expand_pretraining(recipe), folder)
        lines = [f"{len(pretrained)} runs: {sum(row.status == 'done' for row in pretrained)} done"]
        shown, table = pretraining.as_json(pretrained), pretraining.terminal_table(pretrained, recipe.name)
    else:
        cells = expand(recipe)
        rows, swept = tables.rows_of(cells, folder), sweep.groups_of(cells, folder)
        lines = [tables.counts([row.status for row in rows]), sweep.standing(folder)]
        shown, table = tables.as_json(rows), tables.terminal_table(rows, recipe.name, tables.ROWS)
    if as_json:
        print(json.dumps({"study": recipe.name, "runs": shown, "sweep": swept}, indent=1))
        return
    print_table(table)
    if swept:
        print_table(sweep.terminal_table(swept, recipe.name))
    for line in filter(None, lines):
        print(line)
