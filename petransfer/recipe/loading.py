"""Finds a recipe, applies what the command line overrides, and validates it into one frozen object."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from petransfer.errors import UserError, unknown
from petransfer.recipe.effect_requests import still_possible
from petransfer.recipe.pretraining import CorpusPart, NoisePart, PretrainRecipe, PretrainTrainPart
from petransfer.recipe.schema import UNKNOWN_KEY, EffectPart, FamilyPart, MethodPart, Recipe, TaskPart, TrainPart
from petransfer.recipe.values import LONGEST_NAME
from petransfer.recipe.yaml_text import DEEPEST, parse_yaml


def shipped_folder() -> Path:
    """Where the shipped recipes lie: in the installed package, or beside it in a checkout."""
    inside = Path(str(resources.files("petransfer"))) / "_recipes"
    return inside if inside.is_dir() else inside.parent.parent / "recipes"


def shipped() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a shipped recipe's name or a path.

    Raises:
        UserError: there is no such recipe, or the path is a folder.
    """
    path = Path(name).expanduser()
    if any(len(part) > LONGEST_NAME for part in path.parts):  # longer than any file system allows
        raise UserError(f"no recipe '{name[:40]}...': the name has {len(name):,} characters")
    if path.is_dir():
        raise UserError(f"the recipe {name} is a folder; name a yaml file in it, or one of: {', '.join(shipped())}")
    if path.is_file():
        return path
    if name in shipped():
        return shipped()[name]
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise UserError(f"no recipe file {name}; `petransfer recipes ls` shows the shipped ones")
    raise unknown("recipe", name, shipped())


def recipe_of_folder(name: str | Path) -> Path | None:
    """Return the recipe.yaml of a study's folder, or None where `name` is no such folder."""
    path = Path(name).expanduser() / "recipe.yaml"
    try:
        return path if path.is_file() else None
    except OSError:  # a name too long for any file
        return None


def load_recipe(name: str, overrides: Sequence[str] = (), options: dict[str, Any] | None = None) -> Recipe:
    """The recipe called `name` with `a.b=c` overrides, then named options, put in; effects as in `load_reduced`.

    Raises:
        UserError: it cannot be found or read, is not YAML, is empty, or says something that a recipe may not say.
    """
    return load_reduced(name, overrides, options)[0]


def load_reduced(
    name: str, overrides: Sequence[str] = (), options: dict[str, Any] | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe as `load_recipe` gives it, and the effects that cannot be asked of the arms that `options` leave."""
    path, content = _read(name, overrides, options)
    if content.get("kind") == "pretrain":
        raise UserError(f"{name} is a pretraining recipe; carry it out with: petransfer pretrain --recipe {name}")
    recipe = validate(content, str(path))
    if options and options.get("arms"):  # fewer arms leave fewer effects to ask for
        return still_possible(recipe)
    return recipe, []


def load_pretraining(name: str, overrides: Sequence[str] = (), options: dict[str, Any] | None = None) -> PretrainRecipe:
    """The pretraining recipe called `name`, with overrides and options as for `load_recipe`.

    Raises:
        UserError: as `load_recipe`; and where the recipe is a study's.
    """
    path, content = _read(name, overrides, options)
    if content.get("kind") != "pretrain":
        raise UserError(f"{name} is a study's recipe (kind: pretrain is missing); carry it out with: petransfer run")
    return _validate_pretraining(content, str(path))


def _validate_pretraining(content: dict[str, Any], where: str) -> PretrainRecipe:
    try:
        return PretrainRecipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_say(error, content, PretrainRecipe)}") from None


def load_either(name: str) -> Recipe | PretrainRecipe:
    """The recipe called `name`, of whichever kind it is."""
    path, content = _read(name)
    kind = _validate_pretraining if content.get("kind") == "pretrain" else validate
    return kind(content, str(path))


def _read(
    name: str, overrides: Sequence[str] = (), options: dict[str, Any] | None = None
) -> tuple[Path, dict[str, Any]]:
    path = find(name)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} cannot be read: {error}") from None
    except UserError as error:
        raise UserError(f"the recipe {path} {error}") from None
    if content is None:
        raise UserError(
            f"the recipe {path} is empty; `petransfer recipes cp lora-scan my.yaml` gives one to start from"
        )
    if not isinstance(content, dict):
        raise UserError(f"the recipe {path} is not a mapping of keys to values")
    for override in overrides:
        put(content, override)
    content |= {key: value for key, value in (options or {}).items() if value is not None}
    return path, content


def validate(content: dict[str, Any], where: str) -> Recipe:
    """The recipe that `content` describes.

    Raises:
        UserError: with the first mistake, where it stands, and the nearest known key.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_say(error, content, Recipe)}") from None


def freeze(recipe: Recipe | PretrainRecipe) -> str:
    """The resolved recipe as YAML: what a study's folder keeps."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def put(content: dict[str, Any], override: str) -> None:
    """Puts what `a.b=c` says into a recipe's plain values.

    Raises:
        UserError: it is not of that form, or there is no such place.
    """
    _put(content, *_parse(override))


def _parse(override: str) -> tuple[list[str], Any]:
    key, sign, text = override.partition("=")
    if not sign or not key.strip("."):
        raise UserError(f"--set {override}: write it as key=value, for example train.steps=500")
    keys = key.split(".")
    if len(keys) > DEEPEST:
        raise UserError(f"--set {override:.60}: a recipe is not nested {len(keys):,} levels deep")
    try:
        value = _number(parse_yaml(text))
    except UserError as error:
        if _takes_text(keys, text):
            return keys, text
        raise UserError(f"--set {override:.120}: the value {error}") from None
    # `summarize: {document}` is a mapping to YAML, where a recipe wants text
    return keys, text if isinstance(value, dict | list) and _takes_text(keys, text, value) else value


def _takes_text(keys: Sequence[str], text: str, value: Any = None) -> bool:
    """Whether a recipe has a place here for the text, none for the value, and none for a part with keys of its own."""
    kind: Any = Recipe
    for key in keys:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[key].annotation if key in kind.model_fields else None
        else:
            kind = get_args(kind)[-1] if get_origin(kind) is dict else None
    if kind is None or _has_parts(kind):
        return False
    return _fits(kind, text) and (value is None or not _fits(kind, value))


def _has_parts(kind: Any) -> bool:
    return any(map(_has_parts, get_args(kind))) or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _fits(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for a string; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(content: Any, keys: list[str], value: Any) -> None:
    at = content
    for place, key in enumerate(keys):
        last = place == len(keys) - 1
        try:
            if isinstance(at, list):
                index = int(key)
                at[index]  # an index that does not exist is a mistake, not an addition
                if last:
                    at[index] = value
                at = at[index]
            elif last:
                at[key] = value
            else:
                at = at.setdefault(key, {})
        except (ValueError, IndexError, TypeError, AttributeError):
            raise UserError(
                f"--set {'.'.join(keys)}: there is no {'.'.join(keys[: place + 1])} in the recipe"
            ) from None


def _say(error: ValidationError, content: dict[str, Any], model: type[BaseModel]) -> str:
    placed = [(_place(mistake, content), mistake) for mistake in error.errors()]
    start = placed[0][0]
    # What may be one of several kinds fails once for each; the mistake that lies deepest is the one that was made.
    alike = (pair for pair in placed if pair[0][: len(start)] == start)
    place, first = max(alike, key=lambda pair: (len(pair[0]), pair[1]["type"] == "value_error"))
    shown_place = ".".join(map(_shown_key, place))
    if first["type"] in {"extra_forbidden", UNKNOWN_KEY}:
        context = first.get("ctx", {})
        place = [*place, context["key"]] if context else place
        key, names = place[-1], context.get("known") or sorted(_keys(place[:-1], model))
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(names)}"
        return f"unknown key '{'.'.join(map(_shown_key, place))}': {hint}"
    given = first.get("input")
    shown = "" if isinstance(given, dict) or first["type"] == "missing" else f" (it is {_shown(given)})"
    return f"{shown_place or 'recipe'}: {first['msg'].removeprefix('Value error, ')}{shown}"


def _shown(value: Any) -> str:
    """Return a wrong value for an error message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _shown_key(key: str) -> str:
    text = key if key.isprintable() else ascii(key)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _place(mistake: Any, content: Any) -> list[str]:
    """The keys and indices that lead to a mistake, without the names of types that pydantic puts between them."""
    place = []
    for part in mistake["loc"]:
        if isinstance(content, dict | list) and (
            part in content if isinstance(content, dict) else isinstance(part, int)
        ):
            content = content[part]
            place.append(str(part))
    if mistake["type"] == "missing":
        place.append(str(mistake["loc"][-1]))
    return place


def _keys(place: list[str], model: type[BaseModel]) -> Iterator[str]:
    if place:
        model = _PARTS[model].get(place[0], model)
    yield from model.model_fields


_PARTS: dict[type[BaseModel], dict[str, type[BaseModel]]] = {
    Recipe: {"task": TaskPart, "train": TrainPart, "methods": MethodPart, "family": FamilyPart, "effects": EffectPart},
    PretrainRecipe: {"train": PretrainTrainPart, "noise": NoisePart, "corpora": CorpusPart},
}
