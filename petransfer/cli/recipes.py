"""`recipes ls|show|cp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petransfer.errors import UserError
from petransfer.recipe.loading import find, load_either, shipped
from petransfer.recipe.pretraining import PretrainRecipe

app = typer.Typer(no_args_is_help=True, help="The shipped recipes.")


@app.command("ls")
def ls() -> None:
    """List the shipped recipes."""
    width = max(map(len, shipped()))
    for name in shipped():
        print(f"{name:<{width}}  {load_either(name).description}")


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="A recipe's name or file.")]) -> None:
    """Print a recipe."""
    print(find(name).read_text(encoding="utf-8"), end="")


@app.command("cp")
def cp(name: Annotated[str, typer.Argument(help="A recipe's name.")], target: Path) -> None:
    """Copy a recipe to a file of your own, to edit."""
    if target.exists():
        raise UserError(f"{target} exists; name another file")
    try:
        target.write_text(find(name).read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror})") from None
    verb = "pretrain" if isinstance(load_either(str(target)), PretrainRecipe) else "run"
    print(f"copied {name} to {target}; carry it out with: petransfer {verb} --recipe {target}")
