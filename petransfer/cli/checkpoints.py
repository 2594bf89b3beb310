"""The verbs `checkpoints ls`, `checkpoints show` and `checkpoints cp`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.table import Table

from petransfer.atomic_files import creating
from petransfer.cli.table_layout import print_table
from petransfer.errors import UserError, unknown
from petransfer.models.registry import (
    NANO,
    Family,
    embedded_arm,
    embedded_arms,
    embedded_folder,
    family_names,
    is_embedded,
    registered_family,
    registry,
)

app = typer.Typer(no_args_is_help=True, help="List and describe checkpoint families, and copy the shipped checkpoints.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List the checkpoint families and their arms (kinds of pretraining).

    For checkpoints that ship with petransfer, the number of pretraining tokens and the validation loss are shown too.
    """
    rows = [row for name in family_names() for row in _rows(registered_family(name))]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table()
    for name, column in rows[0].items():
        table.add_column(
            name.replace("_", " "),
            justify="right" if isinstance(column, int | float) else "left",
            no_wrap=name in {"family", "arm", "checkpoint"},
        )
    for row in rows:
        table.add_row(*("" if value is None else _FORMS.get(name, "{}").format(value) for name, value in row.items()))
    print_table(table)


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name of a checkpoint family, such as t5-base.")]) -> None:
    """Print what is known about a checkpoint family: its checkpoints, licences, pretraining data and input prefixes."""
    families = registry().families
    if name not in families:
        raise unknown("family", name, families)
    print(yaml.safe_dump(families[name].model_dump(exclude_defaults=True), sort_keys=False, allow_unicode=True), end="")


@app.command("cp")
def cp(
    name: Annotated[str, typer.Argument(help="Name of a shipped checkpoint, such as nano/english.")],
    target: Annotated[Path, typer.Argument(help="Folder to create.")],
) -> None:
    """Copy a shipped checkpoint and its tokenizer into a folder that plain transformers can load."""
    if not is_embedded(name):
        raise UserError(f"{name} does not ship with petransfer; only checkpoints such as nano/english can be copied")
    if target.exists():
        raise UserError(f"{target} exists; delete it or use another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with creating(target) as partial:
        partial.mkdir()
        for path in (*embedded_folder(name).iterdir(), *(NANO / "tokenizer").iterdir()):
            shutil.copyfile(path, partial / path.name)
    print(target)


_FORMS = {"parameters": "{:,}", "tokens_seen": "{:,}", "validation_loss": "{:.3f}"}


def _rows(family: Family) -> list[dict[str, str | int | float | None]]:
    """Return the table rows of a checkpoint family: pretrained arms, then control arms."""
    cards, entries = embedded_arms(), registry().families[family.name].arms
    rows: list[dict[str, str | int | float | None]] = []
    for arm in family.arm_names:
        made = family.arm(arm).checkpoint
        entry = entries.get(arm)
        card = cards.get(embedded_arm(made.name), {}) if entry else {}
        rows.append(
            {
                "family": family.name,
                "arm": arm,
                "checkpoint": made.name if made.reinit == "none" else f"{made.name}, {made.reinit} re-initialised",
                "parameters": entry.parameters if entry else None,
                "languages": ", ".join(entry.languages) if entry else None,
                "licence": entry.licence if entry else None,
                "tokens_seen": card.get("seen_tokens"),
                "validation_loss": card.get("valid_loss"),
            }
        )
    return rows
