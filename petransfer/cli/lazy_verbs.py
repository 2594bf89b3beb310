"""The verbs (subcommands) and their modules. A call of a verb imports the verb's module."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from petransfer.cli.examples import epilog
from petransfer.user_paths import expanded

# For each verb, `module:name`, where `name` is a function or a Typer application in the module.
VERBS = {
    "train": "train:train",
    "predict": "predict:predict",
    "eval": "evaluate:evaluate",
    "serve": "serve:serve",
    "adapter": "adapter:app",
    "fit": "fit:fit",
    "run": "run:run",
    "sweep": "sweep:sweep",
    "plan": "run:plan",
    "status": "run:status",
    "report": "report:app",
    "recipes": "recipes:app",
    "checkpoints": "checkpoints:app",
    "pretrain": "pretrain:pretrain",
    "doctor": "doctor:doctor",
}


class Verbs(TyperGroup):
    """The group of all verbs. The list of verbs is shown without imports."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _adjust_parameters(self)
        self.commands = {name: _Listed(name) for name in VERBS}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, imported(str(name)), rest


class _Listed(TyperCommand):
    """A verb in the list of verbs."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("help", "short_help"):
            return summary(super().__getattribute__("name"))
        return super().__getattribute__(name)


def summary(verb: str) -> str:
    """Return the first paragraph of a verb's help, read from the source file."""
    module, name = VERBS[verb].split(":")
    for node in ast.parse(_source(module)).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _first_paragraph(ast.get_docstring(node) or "")
        if isinstance(node, ast.Assign) and name in [ast.unparse(target) for target in node.targets]:
            found = [one.value for one in getattr(node.value, "keywords", ()) if one.arg == "help"]
            return _first_paragraph(str(ast.literal_eval(found[0]))) if found else ""
    return ""


def _source(module: str) -> str:
    return (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


def imported(verb: str) -> TyperCommand | TyperGroup:
    """Import a verb's module and return the command. Examples are added to the help."""
    module, name = VERBS[verb].split(":")
    found = getattr(importlib.import_module(f"petransfer.cli.{module}"), name)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        _adjust_parameters(group)
        for command in group.commands.values():
            command.epilog = epilog(f"{verb} {command.name}") or None
            _adjust_parameters(command)
        group.epilog = epilog(verb) or None
        return group
    alone = typer.Typer(add_completion=False)
    alone.command(verb, epilog=epilog(verb) or None)(found)
    command = typer.main.get_command(alone)
    _adjust_parameters(command)
    return command  # type: ignore[return-value]


def _adjust_parameters(command: Any) -> None:
    """Add `-h`, expand `~` in all paths, and make the table of options fit into 80 columns.

    A shell expands `--out ~/x`, but not `--out=~/x`. If the table is too wide, Typer cuts the names of options.
    Therefore it shows only the first long name of each option, no type of options without a value, and no range.
    """
    current: dict[str, str] = {}
    for parameter in command.get_params(typer.Context(command, help_option_names=["-h", "--help"])):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        limits = [limit for limit in (parameter.min, parameter.max) if limit is not None]
        if limits:
            parameter.metavar = f"<{type(limits[0]).__name__}>"
            parameter.min = parameter.max = None  # Typer checks the value against its own copy of the range
        parameter.callback = parameter.callback or _in_home
        first, *old = [name for name in parameter.opts if name.startswith("--")] or [""]
        parameter.opts = [name for name in parameter.opts if name not in old]
        current |= {name[2:]: first[2:] for name in old}
    # called for each option, with its name but without the hyphens
    command.context_settings["token_normalize_func"] = lambda name: current.get(name, name)


def _in_home(context: Any, parameter: Any, value: Any) -> Any:
    return expanded(value) if isinstance(value, Path) else value


def path_or_dash(value: Path | None) -> Path | None:
    """Expand `~` in a path that can also be `-`, for standard input or output. A `callback` for options."""
    return value if value in (None, Path("-")) else expanded(value)
