"""`eval`: adapters side by side on one set of examples, on a base that is loaded once."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from petransfer.cli.display import print_table
from petransfer.errors import UserError
from petransfer.share.bundle import opened


def evaluate(
    adapters: Annotated[list[str], typer.Argument(help="Runs' folders, bundles, or owner/name on the hub.")],
    data: Annotated[
        str | None, typer.Option(help="A file of rows, or a benchmark as scan/add_jump; the first adapter's own task.")
    ] = None,
    part: Annotated[Literal["dev", "test"], typer.Option(help="Which examples.")] = "test",
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
    """Score adapters side by side on the same examples; the base is loaded once."""
    from petransfer.checkpoints.quiet import quiet
    from petransfer.share.several import Where, put_together, side_by_side

    quiet()
    where = Where(checkpoint, revision, data_dir, "cpu" if cpu else None)
    with contextlib.ExitStack() as stack:
        bundles = [stack.enter_context(opened(source)) for source in adapters]
        together = put_together(bundles, where, combination_of(weights, combination))
        rows = side_by_side(together, where, part, data)
    if as_json:
        print(json.dumps([vars(row) for row in rows], indent=1))
        return
    table = Table(title=f"{rows[0].task}, {part}, {rows[0].examples:,} examples")
    for name in ("adapter", "EM %", "log p/token", "claimed EM %", "right or wrong as the first %"):
        table.add_column(name, justify="left" if name == "adapter" else "right")
    for row in rows:
        claimed = "" if row.claimed is None else f"{row.claimed:.1f}"
        figures = (f"{row.exact_match:.1f}", f"{row.log_prob_per_token:.3f}", claimed, f"{row.same:.1f}")
        table.add_row(row.label, *figures)
    print_table(table)


def combination_of(weights: str | None, kind: str) -> Any:
    """The combination that `--weights` asks for."""
    from petransfer.share.several import Combination

    if weights is None:
        return None
    try:
        return Combination(tuple(float(weight) for weight in weights.split(",")), kind)
    except ValueError:
        raise UserError(f"--weights {weights}: write numbers as 0.5,0.5") from None
