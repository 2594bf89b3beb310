"""The verbs `recipes ls`, `recipes show` and `recipes cp`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from petransfer.atomic_files import write_text
from petransfer.cli.terminal_text import for_output, print_text
from petransfer.errors import UserError
from petransfer.recipe.loading import find_recipe, load_any_recipe, shipped_recipes
from petransfer.recipe.pretraining import PretrainRecipe

app = typer.Typer(
    no_args_is_help=True,
    help="List, print and copy the shipped recipes.",
)
Name = Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")]


@app.command("ls")
def ls() -> None:
    """List the shipped recipes with their descriptions."""
    names = shipped_recipes()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {load_any_recipe(name).description}")


@app.command("show")
def show(name: Name) -> None:
    """Print a recipe."""
    print(for_output(_text(find_recipe(name)), sys.stdout), end="")


@app.command("cp")
def cp(name: Name, target: Annotated[Path, typer.Argument(help="File to create.")]) -> None:
    """Copy a recipe to a new file, which you can edit."""
    if target.exists():
        raise UserError(f"{target} exists; name another file")
    text = _text(find_recipe(name))
    verb = "pretrain" if isinstance(load_any_recipe(name), PretrainRecipe) else "run"  # refuses an invalid recipe
    try:
        write_text(target, text)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); name another file") from None
    print_text(f"copied {name} to {target}; run it with `petransfer {verb} --recipe {target}`")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} cannot be read: {error}") from None
