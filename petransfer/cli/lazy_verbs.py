"""The verbs and where each of them is. The module of a verb is imported when it is called: --help imports none."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# Each verb with the module and the function, or group of verbs, that it is, and what it says of itself.
VERBS = {
    "train": (
        "train:train",
        "Train a model on your own data until it stops improving, score it on rows held out, and save the adapter.",
    ),
    "run": (
        "run:run",
        "Run every experiment of a recipe. Finished runs are skipped; interrupted runs resume.",
    ),
    "sweep": (
        "sweep:sweep",
        "Find each arm's and method's learning rate on dev, and say it as the recipe takes it. No test set is touched.",
    ),
    "plan": ("run:plan", "Show the grid: its runs, their steps and what is done. Nothing is loaded or downloaded."),
    "status": ("run:status", "Show how a study's or a pretraining's runs stand."),
    "fit": ("fit:fit", "Say what training takes, part by part, and the largest micro-batch that fits a card."),
    "report": (
        "report:app",
        "Write a study's page, tables, plots and effects: petransfer report STUDY. Or compare two studies.",
    ),
    "predict": (
        "predict:predict",
        "Generate a text for each input, with adapters on one base, whole models or base checkpoints.",
    ),
    "eval": (
        "evaluate:evaluate",
        "Score adapters, whole models and base checkpoints side by side on the same examples.",
    ),
    "serve": (
        "serve:serve",
        "Serve adapters on one base, or whole models, by OpenAI's completions API: POST /v1/completions.",
    ),
    "adapter": ("adapter:app", "Share adapters: describe, pack, push, pull, verify and merge them."),
    "pretrain": (
        "pretrain:pretrain",
        "Pretrain every arm of a recipe by span corruption; go on where an interruption left off.",
    ),
    "doctor": ("doctor:doctor", "Report versions, devices, bitsandbytes, bf16, the hub and the disk."),
    "recipes": ("recipes:app", "The shipped recipes."),
    "checkpoints": ("checkpoints:app", "The families of checkpoints and their arms."),
}


class Verbs(TyperGroup):
    """The group of VERBS: their lines are listed without them, and one is imported to be called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=line) for name, (_, line) in VERBS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, imported(str(name)), rest


def imported(verb: str) -> TyperCommand | TyperGroup:
    """A verb of VERBS as a command, from its module."""
    module, name = VERBS[verb][0].split(":")
    found = getattr(importlib.import_module(f"petransfer.cli.{module}"), name)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = typer.Typer(add_completion=False)
    alone.command(verb)(found)
    return typer.main.get_command(alone)  # type: ignore[return-value]
