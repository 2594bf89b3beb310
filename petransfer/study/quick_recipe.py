"""From a model and data to an ordinary recipe: the defaults of the short form `train`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.errors import UserError
from petransfer.models.registry import CONTROLS, checkpoint_spec, is_embedded
from petransfer.recipe.loading import load_recipe, put, validate
from petransfer.recipe.methods import METHODS
from petransfer.recipe.schema import FamilyPart, Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import resolve

# Training is so many epochs unless told otherwise, within these bounds of steps: a handful of rows needs to be seen
# often, and of very many a part will do.
EPOCHS, FEWEST, MOST = 3, 300, 20_000
BATCH = 16

# LoRA's peak rates, as the families' own papers and LoRA's users settled on them; T5's like larger ones than others.
# The embedded family's is that of the shipped recipes, found on dev sets.
NANO, T5, SEQ2SEQ, DECODER = 2e-3, 1e-3, 5e-4, 2e-4
_T5_TYPES = frozenset({"t5", "mt5", "longt5", "umt5"})
# These were trained on many tasks at once and told which by the beginning of the input.
_PREFIXED = re.compile(r"(google-t5/)?t5-(small|base|large|3b|11b)(@.*)?")
PREFIX = "answer: "


@dataclass(frozen=True)
class Wishes:
    """What a user may say; None leaves it to the defaults."""

    method: str = "lora"
    rank: int | None = None
    bits: int | None = None
    steps: int | None = None
    epochs: float | None = None
    rate: float | None = None
    batch_size: int | None = None
    max_length: int | None = None
    prefix: str | None = None
    seeds: tuple[int, ...] = (0,)
    dev: str | None = None
    test: str | None = None
    skip_bad_rows: bool = False


def short_recipe(model: str, data: str, wishes: Wishes, overrides: list[str], on_card: bool) -> dict[str, Any]:
    """The recipe, as plain values, that trains `model` on `data`; its rows are read and checked here.

    overrides: `a.b=c`, put in last. on_card: whether there is a GPU.

    Raises:
        UserError: the model or the data cannot be had, or a wish is no recipe's.
    """
    spec = checkpoint_spec(model)
    arm = _word(model.partition("@")[0].rstrip("/").split("/")[-1])
    arm = f"my-{arm}" if arm in CONTROLS else arm
    stem = _word(Path(data.partition("@")[0]).name.split(".")[0])
    nano = is_embedded(spec.name)
    content: dict[str, Any] = {
        "name": f"{stem}-{arm}",
        "task": {"name": "lines", "options": _options(data, wishes)},
        "family": {"name": arm, "arms": {arm: model}},
        "arms": [arm],
        "methods": [_method(wishes, nano, on_card)],
        "seeds": list(wishes.seeds),
        "train": {"steps": FEWEST, "batch_size": BATCH, "learning_rate": 1e-3},
    }
    for override in overrides:
        put(content, override)
    recipe = resolve(validate(content, "the recipe that this command stands for"))
    content["task"] |= {"options": recipe.task.options, "metrics": recipe.task.metrics}
    _fill(content, recipe, model, wishes)
    for override in overrides:  # what was said outright stands above what was worked out
        put(content, override)
    return content


def _options(data: str, wishes: Wishes) -> dict[str, Any]:
    options: dict[str, Any] = {"train": data, "dev": wishes.dev, "test": wishes.test, "max_length": wishes.max_length}
    options["bad_rows"] = "skip" if wishes.skip_bad_rows else None
    return {key: value for key, value in options.items() if value is not None}


def _method(wishes: Wishes, nano: bool, on_card: bool) -> dict[str, Any]:
    method: dict[str, Any] = {"name": wishes.method}
    method["bits"] = (16 if on_card and not nano else 32) if wishes.bits is None else wishes.bits
    declared = METHODS.lookup(wishes.method)
    keys = declared.keys
    if wishes.rank is not None and "rank" not in keys:
        raise UserError(f"--rank: {declared.does_not_take('rank')}")
    if declared.trains_all_weights:
        return method | ({"rate_scaling": "rms"} if nano else {})
    method |= {"rank": 16 if wishes.rank is None else wishes.rank} if "rank" in keys else {}
    return method | ({"embeddings": "new"} if nano and "embeddings" in keys else {})


def _fill(content: dict[str, Any], recipe: Recipe, model: str, wishes: Wishes) -> None:
    """Rate and prefix by the model's family, steps by the number of rows."""
    from petransfer.models.architecture import configuration

    spec = checkpoint_spec(model)
    config, _ = configuration(spec)
    told = bool(_PREFIXED.fullmatch(model)) or bool(getattr(config, "task_specific_params", None))
    prefix = wishes.prefix if wishes.prefix is not None else PREFIX if told else ""
    content["task"]["prefix"] = prefix
    rows = _rows(recipe)
    batch = wishes.batch_size or min(BATCH, rows)
    rate = default_rate(wishes.method, config, is_embedded(spec.name)) if wishes.rate is None else wishes.rate
    length: dict[str, Any] = {"steps": wishes.steps} if wishes.epochs is None else {"epochs": wishes.epochs}
    if wishes.steps is None and wishes.epochs is None:
        length = {"steps": min(MOST, max(FEWEST, math.ceil(EPOCHS * rows / batch)))}
    content["train"] = {**length, "batch_size": batch, "learning_rate": rate}


def default_rate(method: str, config: Any, nano: bool) -> float:
    """The peak rate of a method on a family. config: the checkpoint's. nano: it is of the embedded family.

    Raises:
        UserError: there is no such method.
    """
    hub = DECODER if not config.is_encoder_decoder else T5 if config.model_type in _T5_TYPES else SEQ2SEQ
    declared = METHODS.lookup(method)
    own, others = declared.nano_learning_rate_factor, declared.learning_rate_factor
    return float(f"{NANO * own if nano else hub * others:.3g}")


def _rows(recipe: Recipe) -> int:
    from petransfer.study.grid import task_of

    task = task_of(recipe)
    return task.train_size(task.splits[0])


def with_whole_places(recipe: Recipe) -> Recipe:
    """The recipe with the files and folders that it names by their whole paths, so that it serves from anywhere.

    No run's id changes by it.
    """
    options = dict(recipe.task.options)
    for part in ("train", "dev", "test"):
        name = options.get(part)
        if isinstance(name, str):
            places = [recipe.data_dir / name] if recipe.data_dir else []
            found = [place for place in (*places, Path(name).expanduser()) if place.exists()]
            if found and (part == "train" or found[0].is_file()):
                options[part] = str(found[0].absolute())
    changes: dict[str, Any] = {"task": recipe.task.model_copy(update={"options": options})}
    if isinstance(recipe.family, FamilyPart):
        arms = {
            arm: str(Path(name).expanduser().absolute())
            if isinstance(name, str) and Path(name).expanduser().is_dir()
            else name
            for arm, name in recipe.family.arms.items()
        }
        changes["family"] = recipe.family.model_copy(update={"arms": arms})
    return recipe.model_copy(update=changes)


def refuse_another(folder: StudyFolder, recipe: Recipe) -> None:
    """Looks whether the folder's finished runs are all of this recipe, which may have more seeds.

    Raises:
        UserError: they are not: they would be in no table any more.
    """
    kept = folder.path / "recipe.yaml"
    if not kept.is_file() or not any(folder.run(name).done for name in folder.names()):
        return
    other = with_whole_places(load_recipe(str(kept)))
    keys = ("name", "task", "family", "arms", "methods", "train", "data_dir")
    unlike = [key for key in keys if getattr(other, key) != getattr(recipe, key)]
    unlike += [] if set(other.seeds) <= set(recipe.seeds) else ["seeds"]
    if unlike:
        raise UserError(f"{folder.path} holds runs of a recipe with other {', '.join(unlike)}; take another --out")


def _word(text: str) -> str:
    """What may stand in a recipe's name and in a table."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "mine"
