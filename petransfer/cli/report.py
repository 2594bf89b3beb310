"""`report`: a study's tables, pictures and verdicts, made anew from its run folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from petransfer.cli.display import print_table
from petransfer.effects.contrasts import family_name, update_effects
from petransfer.errors import UserError
from petransfer.recipe.load import load_either
from petransfer.recipe.schema import Recipe
from petransfer.report import groups, page, pictures, tables
from petransfer.study.grid import expand
from petransfer.study.ledger import StudyFolder


def report(study: Annotated[Path, typer.Argument(help="A folder such as results/lora-scan.")]) -> None:
    """Write a study's page (html), tables (csv, md, tex), plots (svg, png) and effects, and print them."""
    kept = study / "recipe.yaml"
    if not kept.is_file():
        raise UserError(f"{study} is no study's folder: it has no recipe.yaml")
    recipe = load_either(str(kept))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{study} is a pretraining; `petransfer status {study}` shows it")
    cells, folder = expand(recipe), StudyFolder(study)
    rows = tables.rows_of(cells, folder)
    if not any(row.status == "done" for row in rows):
        raise UserError(f"no run of {study} is done; `petransfer run --recipe {kept}` carries them out")
    family = family_name(recipe)
    found = groups.groups_of(rows, family)
    effects = update_effects(recipe, cells, folder)
    tables.write_csv(rows, study / "table.csv", family)
    (study / "table.md").write_text(groups.markdown(found, effects, family), encoding="utf-8")
    (study / "table.tex").write_text(groups.latex(found), encoding="utf-8")
    pictures.save_all(found, effects, cells, folder)
    html = page.page(page.Findings(recipe, cells, folder, found, effects))
    (study / "report.html").write_text(html, encoding="utf-8")
    print_table(groups.terminal_table(found, recipe.name))
    for line in [*effects["sentences"], *effects["missing"]]:
        print(line)
    print(f"see {study}: report.html, table.csv, table.md, table.tex, plots/, effects.json", file=sys.stderr)
