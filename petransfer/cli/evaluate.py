"""`eval`: adapters, on a base that is loaded once, or whole models, side by side on one set of examples."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from petransfer.cli.display import print_table
from petransfer.errors import UserError
from petransfer.sharing.bundle import opened

if TYPE_CHECKING:
    from petransfer.sharing.combined_adapters import Asked, Row


def evaluate(
    adapters: Annotated[
        list[str], typer.Argument(help="Runs' folders, of adapters or of whole models; bundles, owner/name on the hub.")
    ],
    data: Annotated[
        str | None, typer.Option(help="A file of rows, or a benchmark as scan/add_jump; the first one's own task.")
    ] = None,
    part: Annotated[Literal["dev", "test"], typer.Option(help="Which examples.")] = "test",
    by_generation: Annotated[
        bool,
        typer.Option("--by-generation", help="Generate every answer and count those; says where one pass differs."),
    ] = False,
    weights: Annotated[str | None, typer.Option(help="Also their weighted sum, as 0.5,0.5.")] = None,
    combination: Annotated[str, typer.Option(help="How peft combines: linear, cat, svd, ties, ...")] = "linear",
    checkpoint: Annotated[str | None, typer.Option(help="The base, where its folder is here.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="The base's commit or branch, where it is to be another.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Where the data are, if not here.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there is a GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Score adapters, or whole models, side by side on the same examples; adapters' base is loaded once."""
    from petransfer.evaluation.predictor import is_whole_model
    from petransfer.models.library_output import silence_libraries
    from petransfer.sharing.combined_adapters import Asked, Where, put_together, side_by_side, whole_models

    silence_libraries()
    where, asked = Where(checkpoint, revision, data_dir, "cpu" if cpu else None), Asked(part, data, by_generation)
    combined = combination_of(weights, combination)
    if combined is None and all(is_whole_model(Path(source)) for source in adapters):
        rows = whole_models([Path(source) for source in adapters], where, asked)
    else:
        with contextlib.ExitStack() as stack:
            bundles = [stack.enter_context(opened(source)) for source in adapters]
            rows = side_by_side(put_together(bundles, where, combined), where, asked)
    if as_json:
        print(json.dumps([vars(row) for row in rows], indent=1))
    else:
        _show(rows, asked)
    for row in rows:
        if row.disagreements:
            told = f"{row.disagreements} of {row.generated:,} generated answers are not what one forward pass says"
            print(f"{row.label}: {told}; there should be none", file=sys.stderr)


def _show(rows: list[Row], asked: Asked) -> None:
    how = ", by generation" if asked.by_generation else ""
    table = Table(title=f"{rows[0].task}, {asked.part}, {rows[0].examples:,} examples{how}")
    names = ("EM %", "log p/token", "claimed EM %", "right or wrong as the first %", "generated", "disagree")
    table.add_column("adapter")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        claimed = "" if row.claimed is None else f"{row.claimed:.1f}"
        figures = (f"{row.exact_match:.1f}", f"{row.log_prob_per_token:.3f}", claimed, f"{row.same:.1f}")
        table.add_row(row.label, *figures, f"{row.generated:,}", str(row.disagreements))
    print_table(table)


def combination_of(weights: str | None, kind: str) -> Any:
    """The combination that `--weights` asks for."""
    from petransfer.sharing.combined_adapters import Combination

    if weights is None:
        return None
    try:
        return Combination(tuple(float(weight) for weight in weights.split(",")), kind)
    except ValueError:
        raise UserError(f"--weights {weights}: write numbers as 0.5,0.5") from None
