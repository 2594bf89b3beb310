"""`report`: a study's page, tables, pictures and verdicts, made anew from its run folders; and two studies compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from petransfer.cli.display import print_table
from petransfer.effects.contrasts import family_name, update_effects
from petransfer.errors import UserError
from petransfer.recipe.loading import load_either
from petransfer.recipe.schema import Recipe
from petransfer.report import page, sweep
from petransfer.report import plot_files as pictures
from petransfer.report import run_groups as groups
from petransfer.report import run_table as tables
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, expand


class _StudyOrVerb(TyperGroup):
    """`report FOLDER` is `report study FOLDER`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args and args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["study", *args])


app = typer.Typer(
    cls=_StudyOrVerb,
    no_args_is_help=True,
    help="Write a study's page, tables, plots and effects: petransfer report STUDY. Or compare two studies.",
)


@app.command("study")
def report(study: Annotated[Path, typer.Argument(help="A folder such as results/lora-scan.")]) -> None:
    """Write a study's page (html), tables (csv, md, tex), plots (svg, png) and effects, and print them."""
    recipe = _recipe(study)
    cells, folder = expand(recipe), StudyFolder(study)
    rows = tables.rows_of(cells, folder)
    family = family_name(recipe)
    found = groups.groups_of(rows, family)
    swept = sweep.groups_of(cells, folder)
    if not any(row.status == "done" for row in rows):
        _sweep_alone(recipe, cells, folder, found, swept)
        return
    effects = update_effects(recipe, cells, folder, anew=True)
    unswept = sweep.unswept(cells, swept)
    tables.write_csv(rows, study / "table.csv", family)
    (study / "table.md").write_text(groups.markdown(found, effects, family, unswept), encoding="utf-8")
    (study / "table.tex").write_text(groups.latex(found, effects), encoding="utf-8")
    _write_page(page.Findings(recipe, cells, folder, found, effects))
    print_table(groups.terminal_table(found, recipe.name))
    failed = groups.failed_note(found)
    for line in [f"of the runs, {failed}" if failed else "", unswept, *effects["sentences"], *effects["missing"]]:
        if line:
            print(line)
    print(f"see {study}: report.html, table.csv, table.md, table.tex, plots/, effects.json", file=sys.stderr)


def _sweep_alone(
    recipe: Recipe, cells: list[Cell], folder: StudyFolder, found: list[groups.Group], swept: list[sweep.Group]
) -> None:
    """What there is to show of a study that was swept and not run yet."""
    kept = folder.path / "recipe.yaml"
    if not swept:
        raise UserError(f"no run of {folder.path} is done; `petransfer run --recipe {kept}` carries them out")
    _write_page(page.Findings(recipe, cells, folder, found, {"effects": []}))
    print_table(sweep.terminal_table(swept, recipe.name))
    for line in [*sweep.sentences(swept), sweep.unswept(cells, swept)]:
        if line:
            print(line)
    print(f"no run of the study itself is done; see {folder.path}: report.html, plots/, sweep.json", file=sys.stderr)


def _write_page(findings: page.Findings) -> None:
    pictures.save_all(findings.groups, findings.effects, findings.cells, findings.study)
    (findings.study.path / "report.html").write_text(page.page(findings), encoding="utf-8")


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="A study's folder, A.")],
    second: Annotated[Path, typer.Argument(help="Another, B.")],
    out: Annotated[Path | None, typer.Option(help="A file to write too: .html or .md.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Put two studies side by side: the same cells and effects, and B less A with intervals and verdicts."""
    from petransfer.effects.runs import Runs
    from petransfer.report import comparison as side_by_side

    if out and out.suffix not in {".html", ".md"}:
        raise UserError(f"--out {out}: name a file that ends with .html or .md")
    recipes = _recipe(first), _recipe(second)
    metric = side_by_side.metric_of(*recipes)
    studies = [
        Runs(recipe, expand(recipe), StudyFolder(path), metric)
        for recipe, path in zip(recipes, (first, second), strict=True)
    ]
    found = side_by_side.compare(studies[0], studies[1], (str(first), str(second)))
    if out:
        text = side_by_side.as_html(found) if out.suffix == ".html" else side_by_side.as_markdown(found)
        out.write_text(text, encoding="utf-8")
    if as_json:
        print(json.dumps(side_by_side.as_json(found), indent=1, allow_nan=False))
        return
    for line in side_by_side.head(found):
        print(line)
    _print("the same cells", side_by_side.cell_columns(found), side_by_side.cell_lines(found))
    _print("the same effects", side_by_side.effect_columns(found), side_by_side.effect_lines(found))


def _print(title: str, columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    if not lines:
        return
    shown = Table(title=title, title_justify="left")
    for at, name in enumerate(columns):
        shown.add_column(name, justify="left" if at < 3 or name == "verdict" else "right", no_wrap=True)
    for line in lines:
        shown.add_row(*line)
    print_table(shown)


def _recipe(study: Path) -> Recipe:
    kept = study / "recipe.yaml"
    if not kept.is_file():
        raise UserError(f"{study} is no study's folder: it has no recipe.yaml")
    recipe = load_either(str(kept))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{study} is a pretraining; `petransfer status {study}` shows it")
    return recipe
