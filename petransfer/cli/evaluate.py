"""The verb `eval`: score adapters, whole models and base models on the same examples."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from petransfer.cli.base_options import AnyBase, Checkpoint, Revision
from petransfer.cli.column_options import InputColumn, TargetColumn, Template
from petransfer.cli.options import split_names
from petransfer.cli.table_layout import print_table
from petransfer.cli.terminal_text import print_text
from petransfer.errors import UserError
from petransfer.json_lines import with_finite_numbers
from petransfer.plurals import count
from petransfer.recipe.metrics import HEADINGS, meanings
from petransfer.visible_text import visible

if TYPE_CHECKING:
    from petransfer.sharing.scoring import Scores

# A warning lists the numbers of rows if there are at most this many rows.
LISTED = 10


def evaluate(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Adapters or models: folders of runs, studies, adapters or models; bundle files; shipped "
            "checkpoints such as nano/english; hub ids.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Data to score on: a file of rows, or a benchmark such as scan/add_jump. "
            "Default: the task that the first adapter was trained on."
        ),
    ] = None,
    part: Annotated[
        Literal["dev", "test"] | None,
        typer.Option(
            help="Which part of the data to score on. Default: test. If --data is a file, the default is all rows."
        ),
    ] = None,
    input_column: InputColumn = None,
    target_column: TargetColumn = None,
    template: Template = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="More metrics, such as rouge or bleu,chrf. Exact match and the metrics of the "
            "training are always computed."
        ),
    ] = None,
    base: Annotated[
        bool,
        typer.Option("--base", help="Also score the base model alone, and each adapter merged into the base model."),
    ] = False,
    run: Annotated[
        str | None, typer.Option(help="Id of the run to use, if the first of ADAPTERS is a study with several runs.")
    ] = None,
    by_generation: Annotated[
        bool,
        typer.Option(
            "--by-generation", help="Score by generating a text for every example, instead of by one forward pass."
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="Also score a weighted sum of the adapters. Give one weight per adapter, such as 0.5,0.5."),
    ] = None,
    combination: Annotated[
        str | None,
        typer.Option(
            help="How --weights combines the adapters: linear, cat, svd, ties or another combination type of peft. "
            "Default: linear."
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    any_base: AnyBase = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            help="Folder with the benchmark's original files, or with the data files of the adapter's task.",
        ),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Score adapters, fully fine-tuned or merged models, and base models side by side on the same examples.

    All adapters must have the same base model, which is loaded once.
    Rows that an adapter was trained on are counted and scored separately.
    A base model gets the inputs in the same form as the first adapter that petransfer trained. Without such an adapter,
    each input is given exactly as it is, and the target follows it directly.
    """
    from petransfer.sharing.sources import opened_source

    combined = combination_of(weights, combination)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(opened_source(one, None if at else run)) for at, one in enumerate(adapters)]
        from petransfer.models.quiet_libraries import silence_libraries
        from petransfer.sharing.base import LoadOptions
        from petransfer.sharing.scoring import EvaluationRequest, side_by_side
        from petransfer.sharing.task_data import named_columns

        silence_libraries()
        load_options = LoadOptions(checkpoint, revision, data_dir, "cpu" if cpu else None, any_base)
        columns = named_columns(input_column, target_column, template)
        request = EvaluationRequest(data, part, by_generation, base, split_names(metric), columns)
        rows = side_by_side(sources, load_options, request, combined)
    if as_json:
        print(json.dumps(with_finite_numbers([vars(row) for row in rows]), indent=1))
    else:
        _show(rows, by_generation)
    for row in rows:
        _warn(row)


# Headings of the table of scores.
_SCORE, _LOSS, _SAME = "exact match %", "loss per token", "agreement with first %"
_RECORDED, _SEEN, _UNSEEN = "exact match % after training", "exact match % of seen rows", "exact match % of unseen rows"


def _show(rows: list[Scores], by_generation: bool) -> None:
    how = ", by generation" if by_generation else ""
    title = f"{rows[0].task}, {count(rows[0].examples, 'example')}{how}"
    table = Table(title=visible(title, keep=""), title_justify="left")
    table.add_column("model", overflow="fold", min_width=12)
    cells = [_cells(row, len(rows) > 1) for row in rows]
    found = dict.fromkeys(name for row in cells for name in row)
    first = [name for name in (_SCORE, _RECORDED, _SEEN, _UNSEEN) if name in found]
    for name in dict.fromkeys([*first, *found]):
        table.add_column(name, justify="right", min_width=5)
    names = [column.header for column in table.columns[1:]]
    for row, values in zip(rows, cells, strict=True):
        table.add_row(visible(row.label, keep=""), *(values.get(str(name), "") for name in names))
    print_table(table)
    for line in explanations(rows, by_generation):
        print_text(line)


def explanations(rows: list[Scores], by_generation: bool = False) -> list[str]:
    """Return lines that explain column headings of the table of scores."""
    lines = [
        "exact match %: share of the examples for which the model generates exactly the target.",
        *meanings({name for row in rows for name in row.metrics}),
        f"{_LOSS}: mean cross-entropy of a target token of these examples, in nats; lower is better.",
    ]
    if any(row.claimed is not None for row in rows):
        empty = "" if all(row.claimed is not None for row in rows) else "; empty if none was recorded for these rows"
        lines.append(f"{_RECORDED}: the value that was recorded when the adapter was trained{empty}.")
    if any(row.seen_rows for row in rows):
        lines.append(
            "seen rows: the examples that are also training rows of the adapter. unseen rows: all others, among them "
            "the dev rows of the training."
        )
    if len(rows) > 1:
        lines.append(
            f"{_SAME}: share of the examples that this model and the first model of the table both get right or both "
            "get wrong."
        )
    if not by_generation:
        least, most = (function(row.generated for row in rows) for function in (min, max))
        number = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        part = f"{number} of the" if least < rows[0].examples else "all"
        which = (
            " (a random sample, and those with two almost equally likely tokens)" if least < rows[0].examples else ""
        )
        agree = "" if any(row.disagreements for row in rows) else "; all agree"
        lines.append(
            "Exact match and the loss come from one forward pass per example. As a check, texts were generated for "
            f"{part} {count(rows[0].examples, 'example')}{which}{agree}."
        )
    if any(row.label.startswith("merged: ") for row in rows):
        lines.append("merged: the adapter, added to the weights of the base model; it should score like the adapter.")
    return lines


def _cells(row: Scores, several: bool) -> dict[str, str]:
    """Return a row of the table of scores, by column heading."""
    found = {_SCORE: f"{row.exact_match:.1f}"}
    if row.claimed is not None:
        found[_RECORDED] = f"{row.claimed:.1f}"
    if row.seen_rows:
        found |= {_SEEN: f"{row.seen:.1f}", _UNSEEN: "" if row.unseen is None else f"{row.unseen:.1f}"}
    found |= {HEADINGS.get(name, name): f"{value:.1f}" for name, value in row.metrics.items()}
    found[_LOSS] = f"{-row.log_prob_per_token:.3f}"
    return found | ({_SAME: f"{row.same:.1f}"} if several else {})


def _warn(row: Scores) -> None:
    label = visible(row.label, keep="")
    if row.disagreements:
        print_text(
            f"{label}: {row.disagreements:,} of {count(row.generated, 'generated text')} contradict the scores of the "
            "forward pass; there should be none",
            file=sys.stderr,
        )
    if row.seen_rows:
        listed = f" ({', '.join(str(at + 1) for at in row.seen_rows)})" if len(row.seen_rows) <= LISTED else ""
        print_text(
            f"{label} was trained on {len(row.seen_rows):,} of these {row.examples:,} rows{listed}. Only the "
            f"unseen rows show how well it generalises: {_unseen(row)}",
            file=sys.stderr,
        )


def _unseen(row: Scores) -> str:
    unseen = count(row.examples - len(row.seen_rows or ()), "unseen row")
    return "there are none" if row.unseen is None else f"exact match {row.unseen:.1f} % on {unseen}"


def combination_of(weights: str | None, kind: str | None) -> Any:
    """Return the combination of adapters for `--weights`. None if `weights` is None.

    Args:
        weights: Comma-separated numbers, one per adapter.
        kind: peft's name of the combination, such as `cat`. None: `linear`.

    Raises:
        UserError: `weights` is not a list of numbers, or `kind` is given without `weights`.
    """
    if weights is None:
        if kind is not None:
            raise UserError(f"--combination {kind} needs --weights; give one weight per adapter, such as 0.5,0.5")
        return None
    from petransfer.sharing.combined_adapters import Combination

    try:
        return Combination(tuple(float(weight) for weight in weights.split(",")), kind or "linear")
    except ValueError:
        raise UserError(f"--weights {weights}: write numbers, such as 0.5,0.5") from None
