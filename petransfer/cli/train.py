"""`train`: the short form, from a model and data to an adapter, by way of an ordinary recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from petransfer.cli.fit import show
from petransfer.cli.options import Checkpointing, Cpu, Force, Json, parse_seeds
from petransfer.cli.run import own_runs, run_grid
from petransfer.errors import UserError
from petransfer.memory.advice import OF_TRAIN, it_would
from petransfer.memory.study_memory import demand_of, met_new_tokens, this_card
from petransfer.recipe.loading import validate
from petransfer.recipe.methods import METHODS
from petransfer.study.grid import notes
from petransfer.study.launched_processes import splits_tensors
from petransfer.study.quick_recipe import Wishes, refuse_another, short_recipe, with_whole_places
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.study import StudyGrid, grid_of
from petransfer.training.execution import Execution


def train(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, or nano/<arm>.")],
    data: Annotated[str, typer.Argument(help="A tsv, csv, jsonl or parquet file, or what `datasets` loads.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "lora",
    rank: Annotated[int | None, typer.Option(min=1, help="The rank, of LoRA and its kin; 16.")] = None,
    bits: Annotated[int | None, typer.Option(help="32, 16, 8 or 4; 16 on a GPU, 32 elsewhere.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; three epochs, from 300 to 20,000.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.0, help="Epochs, in place of steps.")] = None,
    lr: Annotated[float | None, typer.Option(help="The peak rate; by the model's family and the method.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples a step; 16.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Refuse rows of more pieces. Nothing is cut.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Goes before every input; by the model's family.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, as 0,1,2 or 0-5.")] = "0",
    dev: Annotated[str | None, typer.Option(help="A file, a share or a number of rows; a tenth.")] = None,
    test: Annotated[str | None, typer.Option(help="A file, a share or a number of rows; a tenth.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder; results/<data>-<model> unless given.")] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave broken rows out and list them.")
    ] = False,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any key of the recipe, as for run.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the recipe and what it takes; train nothing.")] = False,
    checkpointing: Checkpointing = False,
    cpu: Cpu = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a model on your own data: write a recipe, say what it takes, train, and score on rows held out."""
    if steps is not None and epochs is not None:
        raise UserError("--steps and --epochs say the same thing; give one of them")
    card = None if cpu else this_card()
    wishes = Wishes(
        method, rank, bits, steps, epochs, lr, batch_size, max_length, prefix, tuple(parse_seeds(seeds)), dev, test,
        skip_bad_rows,
    )  # fmt: skip
    content = short_recipe(model, data, wishes, sets or [], card is not None)
    recipe = with_whole_places(validate(content, "the recipe that this command stands for"))
    study = grid_of(recipe, out)
    if not plan:
        refuse_another(study.folder, recipe)
    if not as_json:
        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110))
    _say_fit(study, card, checkpointing, force, as_json)
    if plan:
        for line in notes(recipe):
            print(line, file=sys.stderr)
        return
    settings = Settings(Execution(log_every=study.log_every, checkpointing=checkpointing), cpu=cpu, force=force)
    run_grid(study, own_runs(study), settings, Scheduling(), as_json)
    _say_next(study)


def _say_fit(study: StudyGrid, card: int | None, checkpointing: bool, force: bool, as_json: bool) -> None:
    from petransfer.memory.planner import plan
    from petransfer.models.architecture import configuration
    from petransfer.models.library_output import silence_libraries
    from petransfer.models.quantization import refuse_already_quantized

    silence_libraries()
    spec = study.cells[0].spec
    config, own_head = configuration(spec.checkpoint)
    refuse_already_quantized(config, spec.checkpoint.name)
    demand = demand_of(spec, checkpointing, "cuda" if card else "cpu")
    found = plan(config, spec.checkpoint, demand, own_head, card, met_new_tokens(spec, config))
    if not as_json:
        show(spec.checkpoint.name, found, words=OF_TRAIN)
    if not found.fits and not force and not splits_tensors():
        advice = it_would(found.advice, OF_TRAIN)
        raise UserError(f"{spec.checkpoint.name} does not fit this card{advice}; --force tries all the same")


def _say_next(study: StudyGrid) -> None:
    done: list[Any] = [cell for cell in study.cells if study.folder.run(cell.run_id).done]
    for cell in done:
        folder = study.folder.run(cell.run_id).path
        kind = "adapter" if (folder / "adapter").is_dir() else "model"
        print(f"seed {cell.seed}: {folder / kind}; ask it: petransfer predict {folder} TEXT", file=sys.stderr)
    print(f"the recipe: petransfer run --recipe {study.folder.path / 'recipe.yaml'}", file=sys.stderr)
