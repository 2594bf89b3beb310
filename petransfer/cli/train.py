"""The verb `train`: turn options into a recipe, and train an adapter on the user's data."""

from __future__ import annotations

import copy
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from petransfer.cli.fit import show
from petransfer.cli.options import Checkpointing, Cpu, Force, Json, LogWith, SaveEvery, parse_seeds, split_names
from petransfer.cli.run import run_grid
from petransfer.cli.terminal_text import print_text, width_of
from petransfer.cli.train_folds import train_folds
from petransfer.cli.train_output import describe, print_summaries, train_hooks
from petransfer.memory.advice import TRAIN_OPTIONS
from petransfer.memory.cards import this_card
from petransfer.models.hub_access import refuse_unreachable
from petransfer.models.registry import is_embedded
from petransfer.plurals import count
from petransfer.recipe.methods import METHODS
from petransfer.study.cross_validation import CrossValidation, cross_validation
from petransfer.study.model_checks import refuse_unusable_files
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.slow_work import naming_slow_work
from petransfer.study.train_estimate import as_json as estimate_json
from petransfer.study.train_estimate import estimate_lines
from petransfer.study.train_request import TrainRequest, split_tokens
from petransfer.study.train_study import (
    TrainStudy,
    memory_if_predictable,
    memory_of,
    refuse_too_large,
    train_study,
)
from petransfer.study.used_rows import notes_of
from petransfer.training.execution import Execution
from petransfer.training.tracker_names import check_trackers

if TYPE_CHECKING:
    from petransfer.memory.planner import Fit

logger = logging.getLogger(__name__)

# Comments that `--plan` adds to keys of the recipe.
_COMMENTS = {
    "  name: lines": "  # rows from your files",
    "family:": "  # a set of models, here of one model, with a name for each",
    "arms:": "  # the names of the models to train",
}
_LENGTH = "Training length"
_DATA = "Data"


def train(
    model: Annotated[
        str, typer.Argument(help="A hub id, a folder, or a checkpoint shipped with petransfer, such as nano/english.")
    ],
    data: Annotated[
        str, typer.Argument(help="Your data: a file (tsv, csv, json, jsonl, parquet), a folder or a hub id.")
    ],
    method: Annotated[str, typer.Option(help=f"Training method: {', '.join(METHODS)}.")] = "lora",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank, for LoRA and its variants. Default: 16.")] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the base model's weights: 32, 16, 8 or 4. Default: 16 on a GPU with bf16, otherwise 32. For "
            "the shipped checkpoints nano/..., the default is always 32."
        ),
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            min=0,
            rich_help_panel=_LENGTH,
            help="Stop after this many evaluations on the dev rows without an improvement, and keep the "
            "best weights. 0: never stop early. Default: 6.",
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=_LENGTH,
            help="Stop after this many optimiser steps, if early stopping has not ended the run before. Default: the "
            "steps of 20 epochs, but at least 2,000 and at most 20,000.",
        ),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, rich_help_panel=_LENGTH, help="Stop after this many minutes of training.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=_LENGTH,
            help="Train for this many optimiser steps. Early stopping is then off, unless --early-stopping is given.",
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            rich_help_panel=_LENGTH,
            help="Train for this many epochs. Early stopping is then off, unless --early-stopping is given.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate", "--lr", help="Peak learning rate. Default: depends on the model family and the method."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "--batch", min=1, help="Examples per optimiser step. Default: 16.")
    ] = None,
    packing: Annotated[
        bool,
        typer.Option("--packing", help="Put several short examples into one row of a batch. For decoder-only models."),
    ] = False,
    input_column: Annotated[
        str | None, typer.Option(rich_help_panel=_DATA, help="Name of the column with the inputs. Default: input.")
    ] = None,
    target_column: Annotated[
        str | None, typer.Option(rich_help_panel=_DATA, help="Name of the column with the targets. Default: target.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(rich_help_panel=_DATA, help="Build each input from columns, as in 'summarize: {document}'."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=_DATA, help="More metrics for the test rows, such as rouge or bleu,chrf."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=_DATA,
            help="Largest number of tokens of an input or a target. Longer rows are refused, not shortened.",
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_DATA, help="Text to put before every input. Default: depends on the model family."
        ),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="Rows for choosing the best step: a file, a share of the rows, or a number of rows. "
            "Default: 0.1, a tenth of the rows.",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="Rows for the final score: a file, a share of the rows, or a number of rows. "
            "Default: 0.1, a tenth of the rows.",
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", rich_help_panel=_DATA, help="Leave out unusable rows and list them.")
    ] = False,
    quoting: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="How to read quotation marks. 'csv': they enclose cells. 'none': they are ordinary text. Default: "
            "detected from the file.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="Cross-validate with this number of folds: every row is scored by a model that was not trained on it. "
            "Then train on all rows. With early stopping, the number of steps is the median of the folds' best steps.",
        ),
    ] = None,
    add_tokens: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="Add tokens for characters that the tokenizer lacks: the names newline, return, tab or braces, or the "
            "characters themselves, separated by commas.",
        ),
    ] = None,
    source_language: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="Language of the inputs, as a code of the tokenizer: en_XX (mBART), en (M2M100), eng_Latn (NLLB).",
        ),
    ] = None,
    target_language: Annotated[
        str | None,
        typer.Option(rich_help_panel=_DATA, help="Language of the targets, as a code of the tokenizer."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2 or 0-5. The model is trained once per seed.")] = "0",
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: results/<data>-<model>.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting that has no option of its own, such as --set train.warmup=0.1. --plan shows all "
            "settings. "
            "Can be given several times.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the settings, rows, tokens, time and memory, and stop before training.")
    ] = False,
    save_every: SaveEvery = 60.0,
    checkpointing: Checkpointing = False,
    log_with: LogWith = None,
    cpu: Cpu = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a model on your own data until it stops improving, score it on held-out rows, and save the adapter."""
    trackers = check_trackers(log_with or [])
    card = None if cpu else this_card()
    has_bf16 = card is not None and card.has_bf16
    request = TrainRequest(
        method, rank, bits, steps, epochs, max_steps, early_stopping, max_minutes, learning_rate, batch_size,
        packing, max_length, prefix, tuple(parse_seeds(seeds)), dev, test, input_column, target_column, template,
        split_names(metric), skip_bad_rows, split_tokens(add_tokens or ""),
        source_language, target_language, folds, {"quoting": quoting},
    )  # fmt: skip
    with naming_slow_work(f"reading the rows of {data}"):
        found = cross_validation(model, data, request, sets or [], out, has_bf16) if folds is not None else None
        training = found.folds[0] if found else train_study(model, data, request, sets or [], out, has_bf16)
    grid = training.grid
    if not plan:  # at once, because the prediction of the memory takes time
        refuse_unreachable((cell.spec.checkpoint for cell in grid.cells), with_weights=True)
    fit = (memory_of if plan else memory_if_predictable)(grid, card, checkpointing)
    if plan and fit:
        with naming_slow_work("counting tokens, and estimating time and memory"):
            _show_plan(training, found, fit, cpu, as_json)
    if plan:
        if fit and not (fit.fits or force):
            raise typer.Exit(1)  # `_show_plan` has printed that it does not fit
        return
    if fit:
        refuse_too_large(grid, fit, force)

    def begin() -> None:
        if not as_json:
            print_text(*describe(training, found))
        if training.note:
            logger.info(training.note)

    execution = Execution(save_every=save_every, log_every=grid.log_every, checkpointing=checkpointing)
    settings = Settings(execution, cpu=cpu, force=force, log_with=trackers)
    if found:
        done = train_folds(found, settings, as_json, begin)
    else:
        run_grid(grid, train_hooks(grid, begin), settings, Scheduling(), as_json)
        done = training
    if not as_json:
        print_summaries(done)


def _show_plan(training: TrainStudy, folds: CrossValidation | None, fit: Fit, cpu: bool, as_json: bool) -> None:
    """Print the data, the time, the memory and the recipe of a training run."""
    grid, rows = training.grid, training.rows
    grid.folder.check(grid.recipe.name)
    runs = len(folds.folds) + 1 if folds else len(grid.cells)
    checkpoint = grid.cells[0].spec.checkpoint
    if is_embedded(checkpoint.name) or checkpoint.source:  # a plan downloads nothing
        refuse_unusable_files(grid, ("dev",) if folds else ("dev", "test"))
    if as_json:
        about = {"recipe": training.recipe, "rows": rows, "folder": str(grid.folder.path)}
        memory = {"memory": fit.as_dict()}
        print(json.dumps(about | estimate_json(grid.cells[0], rows, fit, cpu, runs) | memory, indent=1))
        return
    for line in filter(None, (training.note, *notes_of(grid))):
        logger.info(line)
    print_text(*describe(training, folds), *estimate_lines(grid.cells[0], rows, fit, cpu, runs))
    step_spec = fit.step_spec
    print_text(
        f"\nmemory: predicted for {count(step_spec.input_length, 'input token')} and "
        f"{count(step_spec.target_length, 'target token')} per example, estimated from the number of characters:"
    )
    show(checkpoint.name, fit, options=TRAIN_OPTIONS)
    print_text("\nsettings (change one with --set, such as --set train.batch_size=8):")
    shown = copy.deepcopy(training.recipe)
    shown["task"]["options"].pop("sha256", None)  # the hash of the rows is not a setting
    width = min(110, width_of(sys.stdout) or 110)
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, default_flow_style=None, width=width)
    print("\n".join(f"{line}{_COMMENTS.get(line.partition(' [')[0], '')}" for line in text.splitlines()))
