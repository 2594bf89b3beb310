"""mkdocs hook: make some reference pages from the code, so that they always agree with it.

The page on the command line comes from the Typer application, the page on recipes from the pydantic schema, and the
page on the API from the public names of the package.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages before mkdocs reads the folder."""
    for place, make in PAGES.items():
        files.append(File.generated(config, place, content=make()))
    return files


def command_line_page() -> str:
    """Return the page of all commands with their options."""
    from petransfer.cli.lazy_verbs import VERBS, imported

    lines = [
        "# Command line",
        "",
        "Every command prints its options with `--help`. `--debug` shows the traceback of an error.",
        "",
    ]
    for verb in VERBS:
        lines += _command(f"petransfer {verb}", imported(verb), 2)
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}"
    yield ""
    for paragraph in (command.help or "").replace("\b", "").split("\n\n"):
        yield _escaped(" ".join(paragraph.split()))
        yield ""
    if hasattr(command, "commands") and command.commands:
        for inner in command.commands.values():
            yield from _command(f"{name} {inner.name}", inner, level + 1)
        return
    rows = [_option(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    rows = [row for row in rows if row]
    if rows:
        yield "| option | value | meaning |"
        yield "| --- | --- | --- |"
        yield from rows
        yield ""


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts] if name != "--help")
    if not names:
        return ""
    flag = getattr(parameter, "is_flag", False)
    kind = parameter.type_descriptor.annotation
    value = "" if flag or kind is bool else f"`{getattr(kind, '__name__', 'value').lower()}`"
    text = _escaped(" ".join((getattr(parameter, "help", "") or "").split()))
    default = parameter.default
    if default not in (None, False, (), []) and not callable(default) and isinstance(default, str | int | float):
        text += f" Default: `{default}`."
    return f"| {names} | {value} | {text} |"


def recipe_page() -> str:
    """Return the page of all keys that a recipe may contain, from the schema."""
    from petransfer.recipe.schema import Recipe

    schema = Recipe.model_json_schema()
    lines = [
        "# Recipes",
        "",
        "A recipe is a YAML file. `petransfer recipes ls` lists the shipped ones.",
        "`petransfer recipes cp NAME FILE` copies one. Unknown keys are errors.",
        "`--set a.b=c` overrides a key on the command line.",
        "",
    ]
    lines += _schema_part("recipe", schema, schema)
    for name, part in sorted(schema.get("$defs", {}).items()):
        lines += _schema_part(name.removesuffix("Part").lower(), part, schema)
    return "\n".join(lines) + "\n"


def _schema_part(title: str, part: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    if "properties" not in part:
        return []
    paragraphs, meanings = _described(part.get("description", ""), part["properties"])
    lines = [f"## {title}", ""]
    for paragraph in paragraphs:
        lines += [_escaped(paragraph), ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in part["properties"].items():
        needed = key in part.get("required", [])
        default = "required" if needed else f"`{json.dumps(field.get('default'))}`"
        lines.append(f"| `{key}` | {_escaped(_type(field))} | {default} | {_escaped(meanings.get(key, ''))} |")
    return [*lines, ""]


def _described(text: str, keys: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Split a docstring into its paragraphs and the meanings of keys.

    A meaning is a line such as `margin: largest difference` or `under, over: two methods`, with the indented lines that
    follow it.
    """
    paragraphs: list[str] = []
    meanings: dict[str, str] = {}
    for block in text.split("\n\n"):
        entries = re.sub(r"\n\s+", " ", block).split("\n")
        sentences = []
        for entry in entries:
            names, _, meaning = entry.partition(": ")
            named = [name.strip() for name in names.split(",")]
            if set(named) <= set(keys):
                meanings |= dict.fromkeys(named, meaning)
            else:
                sentences.append(entry)
        paragraphs += [" ".join(sentences)] if sentences else []
    return paragraphs, meanings


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2].removesuffix("Part").lower()
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    if field.get("type") == "object":
        return f"mapping to {_type(field['additionalProperties'])}" if field.get("additionalProperties") else "mapping"
    return str(field.get("const", field.get("type", "any")))


def api_page() -> str:
    """Return the page of the public API, with one mkdocstrings entry per name."""
    from petransfer import _PUBLIC

    lines = [
        "# Python API",
        "",
        "Import all names from `petransfer`. torch is imported only when a name that needs it is used.",
        "",
    ]
    for name, module in sorted(_PUBLIC.items(), key=lambda entry: entry[0].lower()):
        lines += [f"::: {module}.{name}", ""]
    return "\n".join(lines) + "\n"


def support_page() -> str:
    """Return the page of supported architectures, made from the table of architectures in the tests."""
    sys.path.insert(0, str(ROOT))
    from tests.models.architectures import support

    return "\n".join(
        [
            "# Supported models",
            "",
            "The numbers are the bits of the frozen weights. For each `yes`, a test loads a small checkpoint,",
            "trains LoRA, evaluates, saves the adapter, and loads it with plain peft.",
            "",
            support(),
            "",
        ]
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;")


PAGES = {
    "reference/command-line.md": command_line_page,
    "reference/recipe.md": recipe_page,
    "reference/api.md": api_page,
    "reference/support.md": support_page,
}
