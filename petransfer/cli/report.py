"""The verbs `report study` and `report compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from petransfer.atomic_files import write_text
from petransfer.cli.table_layout import print_meanings, print_table
from petransfer.cli.terminal_text import print_text
from petransfer.effects.kind import kinds_in_order
from petransfer.errors import UserError
from petransfer.recipe.metrics import meanings
from petransfer.report import run_groups as groups
from petransfer.report import run_page, run_table, sweep
from petransfer.report.meanings import LOSS_MEANING
from petransfer.report.study_report import FILES, write_report
from petransfer.study.study import open_grid


class _StudyOrVerb(TyperGroup):
    """A group in which `report FOLDER` means `report study FOLDER`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args and args[0] in self.commands and not (len(args) == 1 and Path(args[0]).is_dir())
        return super().resolve_command(ctx, args if known else ["study", *args])


app = typer.Typer(
    cls=_StudyOrVerb,
    no_args_is_help=True,
    help="Write the report of a study: `petransfer report STUDY`. Or compare two studies: "
    "`petransfer report compare A B`.",
)


@app.command("study")
def report(study: Annotated[Path, typer.Argument(help="Folder of the study, such as results/lora-scan.")]) -> None:
    """Write the report of a study: a page (html), a table of scores (csv, md, tex), plots (svg, pdf, png) and effects.

    The table of scores and the effects are also printed.
    """
    grid = open_grid(study)
    found = write_report(grid)
    name = grid.recipe.name
    if found.single:
        _print_run(found.single, grid.folder.run(found.single.cell.run_id).result() or {})
        folds = run_page.folds_note(found.single, grid.folder)
        loss = [] if folds or found.single.test_loss is None else [LOSS_MEANING]
        lines = [groups.incomplete_note(found.groups), folds, *loss, *meanings(found.single.scores), found.unswept_note]
    elif not found.any_done:
        print_table(sweep.terminal_table(found.swept, name))
        lines = [
            "No run of the study is finished; only runs of its sweep are.",
            *sweep.sentences(found.swept),
            found.unswept_note,
        ]
    else:
        table = groups.terminal_table(found.groups, name)
        print_table(table)
        print_meanings(table)
        effects = found.effects
        lines = [
            groups.incomplete_note(found.groups),
            found.unswept_note,
            *effects["sentences"],
            *effects["missing"],
        ]
        lines += [kind.about for kind in kinds_in_order() if effects.get(kind.key)]
        if any(one["p_holm"] is not None for one in effects["effects"]):
            lines.append("Holm: the p values are corrected, because several effects are tested together.")
    for line in filter(None, lines):
        print_text(line)
    files = (*FILES, "sweep.json") if found.swept else FILES
    if note := grid.weights_note:
        print_text(note, file=sys.stderr)
    print_text(f"written to {study}: {', '.join(name for name in files if (study / name).exists())}", file=sys.stderr)


def _print_run(row: run_table.RunRow, result: dict[str, Any]) -> None:
    """Print the results of a study with a single run, one number per line."""
    print_text(run_page.title_of(row))
    figures = run_page.figures_of(row, result)
    width = max(len(name) for name, _ in figures)
    for name, value in figures:
        print_text(f"  {name:<{width}}  {value}")


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of study A.")],
    second: Annotated[Path, typer.Argument(help="Folder of study B.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write the comparison to this file, whose name ends in .html or .md.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare two studies, A and B, in the scores and effects that both have. Differences are B minus A."""
    from petransfer.effects.runs import Runs
    from petransfer.report import comparison as side_by_side

    if out and out.suffix not in {".html", ".md"}:
        raise UserError(f"--out {out}: name a file that ends with .html or .md")
    grids = open_grid(first), open_grid(second)
    metric = side_by_side.metric_of(*(grid.recipe for grid in grids))
    studies = [Runs(grid.recipe, grid.cells, grid.folder, metric) for grid in grids]
    found = side_by_side.compare(studies[0], studies[1], (str(first), str(second)))
    if out:
        text = side_by_side.as_html(found) if out.suffix == ".html" else side_by_side.as_markdown(found)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    if as_json:
        print(json.dumps(side_by_side.as_json(found), indent=1, allow_nan=False))
        return
    for line in side_by_side.head(found):
        print_text(line)
    _print("scores that both studies have", side_by_side.cell_columns(found), side_by_side.cell_lines(found))
    _print("effects that both studies have", side_by_side.effect_columns(found), side_by_side.effect_lines(found))


def _print(title: str, columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    if not lines:
        return
    shown = Table(title=title, title_justify="left")
    for at, name in enumerate(columns):
        shown.add_column(name, justify="left" if at < 3 or name == "verdict" else "right", no_wrap=True)
    for line in lines:
        shown.add_row(*line)
    print_table(shown)
    print_meanings(shown)
