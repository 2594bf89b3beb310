"""`checkpoints ls`."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.table import Table

from petransfer.checkpoints.registry import embedded_arms, family_names, registered_family

app = typer.Typer(no_args_is_help=True, help="The families of checkpoints and their arms.")


@app.callback()
def _group() -> None:
    pass


@app.command("ls")
def ls() -> None:
    """List the families, their arms, and what the embedded ones were pretrained on."""
    cards = embedded_arms()
    table = Table()
    for name in ("family", "arm", "checkpoint", "parameters", "tokens seen", "validation loss"):
        table.add_column(name)
    for family in map(registered_family, family_names()):
        for arm in family.arm_names:
            made = family.arm(arm).checkpoint
            control = arm not in family.arms
            card = cards.get(made.name.removeprefix("nano/"), {}) if not control else {}
            figures = [f"{card[key]:{form}}" if card else "" for key, form in _COLUMNS]
            table.add_row(family.name, arm, f"{made.name} (reinit {made.reinit})" if control else made.name, *figures)
    # cut to the terminal where there is one; a file or a pipe gets whole names
    Console(width=None if sys.stdout.isatty() else 120).print(table)


_COLUMNS = (("parameters", ","), ("seen_tokens", ","), ("valid_loss", ".3f"))
