"""Find a recipe, apply overrides to it, and validate it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from petransfer.errors import UserError, shortened, unknown
from petransfer.recipe.effect_requests import without_impossible_effects
from petransfer.recipe.method_part import UNKNOWN_KEY, MethodPart
from petransfer.recipe.pretraining import CorpusPart, NoisePart, PretrainRecipe, PretrainTrainPart
from petransfer.recipe.relative_paths import with_absolute_paths
from petransfer.recipe.right_forms import correct_form, type_of_yaml
from petransfer.recipe.schema import EffectPart, FamilyPart, Recipe, TaskPart, TrainPart
from petransfer.recipe.yaml_text import DEEPEST, parse_yaml
from petransfer.similar_names import petransfer_name, similar_name
from petransfer.unreadable_files import refuse_unreadable
from petransfer.user_paths import expanded


@dataclass(frozen=True)
class Mistake:
    """The first mistake in a recipe.

    Attributes:
        place: The wrong key with the keys around it, such as `methods.0.bits`. Empty: the recipe as a whole.
        problem: The fault in the value, and the values that are allowed.
        value: The wrong value.
        shown: The wrong value as a text in brackets with a blank before it. Empty if `problem` has it.
        is_unknown_key: Whether the key itself is wrong. `problem` then has the place.
    """

    place: str
    problem: str
    value: Any = None
    shown: str = ""
    is_unknown_key: bool = False

    def __str__(self) -> str:
        return self.problem if self.is_unknown_key else f"{self.place or 'recipe'}: {self.problem}{self.shown}"


class InvalidRecipe(UserError):
    """The error for a recipe that is not valid.

    Args:
        where: File of the recipe, for the message.
        mistake: The first mistake.
    """

    def __init__(self, where: str, mistake: Mistake) -> None:
        super().__init__(f"{where}: {mistake}")
        self.mistake = mistake


def shipped_folder() -> Path:
    """Return the folder of the shipped recipes."""
    inside = Path(str(resources.files("petransfer"))) / "_recipes"
    return inside if inside.is_dir() else inside.parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the shipped recipes by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, given by its name or its path."""
    path = expanded(name)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # such as a name that is longer than the file system allows
        why = f"{error.strerror}; the name has {len(name):,} characters"
        raise UserError(f"the recipe '{shortened(name, 40)}' cannot be read ({why})") from None
    if is_folder:
        raise UserError(
            f"the recipe {name} is a folder; name a YAML file in it, or one of: {', '.join(shipped_recipes())}"
        )
    if is_file:
        return path
    if name in shipped_recipes():
        return shipped_recipes()[name]
    if path.exists():
        raise UserError(f"the recipe {name} is a pipe or a device; save the recipe in a file first")
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise UserError(f"no recipe file {name}; `petransfer recipes ls` shows the shipped ones")
    raise unknown("recipe", name, shipped_recipes())


def recipe_of_folder(name: str | Path) -> Path | None:
    """Return the path of recipe.yaml in a study's folder. None if `name` is not the folder of a study."""
    path = expanded(name) / "recipe.yaml"
    try:
        return path if path.is_file() else None
    except OSError:  # a name too long for any file
        return None


def load_recipe(name: str, overrides: Sequence[str] = (), options: dict[str, Any] | None = None) -> Recipe:
    """Return a study's recipe.

    Args:
        name: Name of a shipped recipe, or a file.
        overrides: Changes of the form `a.b=c`, applied in order.
        options: New values of the recipe's top-level keys, applied last. A value of None leaves the key as it is. If
            `arms` is given, effects that need other arms are removed.

    Raises:
        UserError: The recipe cannot be found or read, is empty, or is not valid.
    """
    return load_with_dropped_effects(name, overrides, options)[0]


def load_with_dropped_effects(
    name: str, overrides: Sequence[str] = (), options: dict[str, Any] | None = None
) -> tuple[Recipe, list[str]]:
    """Return a study's recipe and the names of the dropped effects; see `load_recipe`."""
    path, content = _read(name, overrides, options)
    if content.get("kind") == "pretrain":
        raise UserError(f"{name} is a pretraining recipe; run it with `petransfer pretrain --recipe {name}`")
    recipe = validate(content, str(path))
    if options and options.get("arms"):
        return without_impossible_effects(recipe)
    return recipe, []


def load_pretraining(name: str, overrides: Sequence[str] = (), options: dict[str, Any] | None = None) -> PretrainRecipe:
    """Return a pretraining recipe; see `load_recipe`."""
    path, content = _read(name, overrides, options)
    if content.get("kind") != "pretrain":
        raise UserError(
            f"{name} is a study's recipe (kind: pretrain is missing); run it with `petransfer run --recipe {name}`"
        )
    return _validate_pretraining(content, str(path))


def _validate_pretraining(content: dict[str, Any], where: str) -> PretrainRecipe:
    try:
        return PretrainRecipe.model_validate(content)
    except ValidationError as error:
        raise InvalidRecipe(where, _mistake(error, content, PretrainRecipe)) from None


def load_any_recipe(name: str) -> Recipe | PretrainRecipe:
    """Return the recipe of a study or of a pretraining, given by its name or its file."""
    path, content = _read(name)
    kind = _validate_pretraining if content.get("kind") == "pretrain" else validate
    return kind(content, str(path))


def _read(
    name: str, overrides: Sequence[str] = (), options: dict[str, Any] | None = None
) -> tuple[Path, dict[str, Any]]:
    path = find_recipe(name)
    refuse_unreadable(path)
    try:
        # petransfer wrote the recipe in a study's folder, without quotes around some texts
        content = parse_yaml(path.read_text(encoding="utf-8"), by_hand=not (path.parent / "runs").is_dir())
    except UnicodeDecodeError as error:
        raise UserError(f"the recipe {path} is not UTF-8 at byte {error.start + 1}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the recipe {path} cannot be read: {error}") from None
    except UserError as error:
        raise UserError(f"the recipe {path} {error}") from None
    if content is None and (path.parent / "runs").is_dir():
        raise UserError(f"{path} is empty; restore it, or repeat the run in another folder (--out)")
    if content is None:
        raise UserError(
            f"the recipe {path} is empty; `petransfer recipes cp lora-scan my.yaml` gives one to start from"
        )
    if not isinstance(content, dict):
        raise UserError(f"the recipe {path} is not a mapping of keys to values")
    for override in overrides:
        apply_override(content, override)
    content |= {key: value for key, value in (options or {}).items() if value is not None}
    return path, with_absolute_paths(content, path.parent)


def validate(content: dict[str, Any], where: str) -> Recipe:
    """Validate plain values and return the recipe.

    Raises:
        InvalidRecipe: The recipe is not valid. The message names the first wrong key and suggests a known key.
        UserError: The recipe is a configuration of another program.
    """
    others = [_shown_key(str(key)) for key in content if key not in Recipe.model_fields]
    if others and not {"task", "methods"} & content.keys():  # the configuration of another program
        raise UserError(
            f"{where} is no recipe of petransfer: it has {', '.join(others[:3])}, and no task and methods; `petransfer "
            "recipes cp lora-scan my.yaml` gives a recipe to edit, and `petransfer train MODEL DATA` needs no recipe"
        )
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InvalidRecipe(where, _mistake(error, content, Recipe)) from None


def recipe_yaml(recipe: Recipe | PretrainRecipe) -> str:
    """Return a recipe as YAML, for the file in a study's folder."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Apply an override of the form `a.b=c` to a recipe's plain values, in place."""
    _set(content, *_parse(override))


def overridden_key(override: str) -> list[str]:
    """Return the names of the nested keys that an override sets: `['a', 'b']` for `a.b=c`."""
    return _parse(override)[0]


def _parse(override: str) -> tuple[list[str], Any]:
    key, sign, text = override.partition("=")
    if not sign or not key.strip("."):
        raise UserError(f"--set {override}: write it as key=value, for example train.steps=500")
    keys = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")  # `methods[0].rank` is `methods.0.rank`
    if len(keys) > DEEPEST:
        raise UserError(f"--set {override:.60}: a recipe is not nested {len(keys):,} levels deep")
    try:
        value = parse_yaml(text)
    except UserError as error:
        if _takes_text(keys, text):
            return keys, text
        raise UserError(f"--set {override:.120}: the value {error}") from None
    if value is None or (isinstance(value, str) and text.lstrip()[:1] in ("'", '"')):
        return keys, value
    if isinstance(value, str):
        # YAML removes white space at both ends, and comments after ` #`; a value of type text keeps both
        kept = text if value != text and _takes_text(keys, text) else value
        return keys, kept if _takes_text(keys, kept, _number(kept)) else _number(kept)
    # YAML reads `summarize: {document}` as a mapping and `5` as a number; the text is used instead if the recipe's key
    # takes a text and not the value
    return keys, text if _takes_text(keys, text, value) else value


def _takes_text(keys: Sequence[str], text: str, value: Any = None) -> bool:
    """Return whether an override's text is used, instead of the value that YAML reads."""
    kind: Any = Recipe
    for key in keys:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[key].annotation if key in kind.model_fields else None
        else:
            kind = get_args(kind)[-1] if get_origin(kind) in (dict, list) else None
    if kind is None or _has_parts(kind):
        return False
    # the schema allows the text, but not the value
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
    """Convert a text such as 1e-3 to a number: YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _set(content: Any, keys: list[str], value: Any) -> None:
    at = content
    for place, key in enumerate(keys):
        last = place == len(keys) - 1
        try:
            if isinstance(at, list):
                index = int(key)
                at[index]  # raises IndexError: an override cannot append to a list
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


def _mistake(error: ValidationError, content: dict[str, Any], model: type[BaseModel]) -> Mistake:
    placed = [(_place(mistake, content), mistake) for mistake in error.errors()]
    placed.sort(key=lambda pair: pair[1]["type"] == "missing")  # a misspelt key makes the right key missing, too
    start = placed[0][0]
    # If a key allows several types, pydantic reports one error per type. The error whose place has the most keys is for
    # the type that the user meant.
    alike = (pair for pair in placed if pair[0][: len(start)] == start)
    place, first = max(alike, key=lambda pair: (len(pair[0]), pair[1]["type"] == "value_error"))
    place = [*map(_shown_key, place)]
    if first["type"] in {"extra_forbidden", UNKNOWN_KEY}:
        context = first.get("ctx", {})
        place = [*place, _shown_key(context["key"])] if context else place
        key, names = place[-1], context.get("known") or sorted(_keys(place[:-1], model))
        inner = inner_key(key) if len(place) == 1 and model is Recipe else ""
        near = inner or similar_name(key, names)
        hint = f"did you mean '{near}'?" if near else f"known here: {', '.join(names)}"
        return Mistake(".".join(place), f"unknown key '{'.'.join(place)}': {hint}", is_unknown_key=True)
    given = first.get("input")
    # the message about a path contains the path
    shown = "" if isinstance(given, dict | Path) or first["type"] == "missing" else f" (it is {_shown(given)})"
    if (first["type"] == "string_type" or place[:2] == ["task", "options"]) and (read_as := type_of_yaml(given)):
        shown = f" ({read_as})"
    if first["loc"][-1:] == ("[key]",):
        outer = [str(part) for part in first["loc"][:-2] if str(part) in place]
        return Mistake(".".join(outer), "a key must be a text", given, shown)
    what = correct_form(place, first) or first["msg"].removeprefix("Value error, ").replace(
        "Input should", "the value should"
    )
    return Mistake(".".join(place), what, given, shown)


def _shown(value: Any) -> str:
    """Return the text of an invalid value for an error message."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print numbers of thousands of digits
        return "a number of thousands of digits"
    return shortened(text, 100)


def _shown_key(key: str) -> str:
    return shortened(key if key.isprintable() else ascii(key), 60)


def _place(mistake: Any, content: Any) -> list[str]:
    """Return the path of the wrong value in a recipe, without pydantic's type names."""
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


def inner_key(key: str) -> str:
    """Return the full path of a key inside a part of a recipe, such as `train.steps` for `steps`. Empty for other keys.

    The key can be a name of another program, such as `lora_alpha`.
    """
    key = petransfer_name(key)
    parts: dict[str, type[BaseModel]] = {"train": TrainPart, "task": TaskPart, "methods.0": MethodPart}
    return next((f"{name}.{key}" for name, part in parts.items() if key in part.model_fields), "")


def _keys(place: list[str], model: type[BaseModel]) -> Iterator[str]:
    if place:
        model = _PARTS[model].get(place[0], model)
    yield from model.model_fields


_PARTS: dict[type[BaseModel], dict[str, type[BaseModel]]] = {
    Recipe: {"task": TaskPart, "train": TrainPart, "methods": MethodPart, "family": FamilyPart, "effects": EffectPart},
    PretrainRecipe: {"train": PretrainTrainPart, "noise": NoisePart, "corpora": CorpusPart},
}
