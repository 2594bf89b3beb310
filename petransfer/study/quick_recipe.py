"""Build the recipe of `petransfer train` from a model, data and settings."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from petransfer.data.bad_rows import UnusableRows
from petransfer.errors import UserError
from petransfer.models.registry import CONTROLS, checkpoint_spec, is_embedded
from petransfer.recipe.loading import apply_override, overridden_key
from petransfer.recipe.method_part import MethodPart
from petransfer.recipe.methods import METHODS
from petransfer.recipe.schema import ArmPart, FamilyPart, Recipe
from petransfer.study.grid import expand, resolve, task_of
from petransfer.study.train_options import recipe_of_options
from petransfer.study.train_request import TrainRequest
from petransfer.study.used_rows import refused_by_tokenizer, used_data
from petransfer.user_paths import expanded

# By default, training ends when the dev score no longer improves, or after as many steps as EPOCHS epochs have. This
# limit is at least FEWEST_STEPS, because few rows must be repeated often. It is at most MOST_STEPS, because a part of
# very many rows is enough.
EPOCHS, FEWEST_STEPS, MOST_STEPS = 20, 2_000, 20_000
# The largest number of evaluations on dev during training, and the smallest number of steps between two of them.
EVALUATIONS, EVALUATE_EVERY = 40, 50
PATIENCE = 6
BATCH = 16

# LoRA's peak learning rate for each kind of model, from the papers of the model families and common LoRA practice. NANO
# is for the embedded family; it is the value of the shipped recipes and was chosen on dev sets. For another method, the
# value is multiplied by a factor that the method declares.
NANO, T5, SEQ2SEQ, DECODER = 2e-3, 1e-3, 5e-4, 2e-4
_T5_TYPES = frozenset({"t5", "mt5", "longt5", "umt5"})
# The names of models that were trained on many tasks at once. A prefix in front of the input tells them the task.
_PREFIXED = re.compile(r"(google-t5/)?t5-(small|base|large|3b|11b)(@.*)?")
PREFIX = "answer: "


def recipe_for(model: str, data: str, request: TrainRequest, overrides: list[str], has_bf16: bool) -> dict[str, Any]:
    """Return the content of the recipe that trains `model` on `data`. The rows are checked.

    Args:
        overrides: Values for keys of the recipe, such as `train.warmup=0.1`. An override replaces any other value.
        has_bf16: Whether there is a GPU that computes in bf16. The default is then 16 bits.

    Raises:
        UserError: The model or the data cannot be found or read, or the request is not valid. If there are rows that
            cannot be read, the message also counts the rows that the tokenizer refuses.
    """
    try:
        return _recipe_for(model, data, request, overrides, has_bf16)
    except UnusableRows as error:
        try:
            rest = _recipe_for(model, data, replace(request, skip_bad_rows=True), overrides, has_bf16)
            more = refused_by_tokenizer(expand(recipe_of_options(rest, overrides, request.steps_option))[0].spec, None)
        except UserError:  # the user has to correct the first error before anything else can be found
            more = ""
        raise UserError(f"{error}. Of the other rows, {more}" if more else str(error)) from None


def _recipe_for(model: str, data: str, request: TrainRequest, overrides: list[str], has_bf16: bool) -> dict[str, Any]:
    _refuse_epochs(overrides)
    request = _with_overridden_method(request, overrides)
    spec = checkpoint_spec(model)
    arm = _file_name_part(model.partition("@")[0].rstrip("/").split("/")[-1])
    arm = f"my-{arm}" if arm in CONTROLS else arm
    stem = _file_name_part(Path(data.partition("@")[0]).name.split(".")[0])
    embedded = is_embedded(spec.name)
    content: dict[str, Any] = {
        "name": f"{stem}-{arm}",
        "task": {"name": "lines", "options": _options(data, request)},
        "family": {"name": arm, "arms": {arm: _checkpoint(model, request)}},
        "arms": [arm],
        "methods": [_method(request, embedded, has_bf16)],
        "seeds": list(request.seeds),
        "train": {"steps": FEWEST_STEPS, "batch_size": BATCH, "learning_rate": 1e-3},
    }
    for override in overrides:
        apply_override(content, override)
    recipe = recipe_of_options(content, overrides, request.steps_option)
    if spec.source:  # a damaged folder is refused before the rows are read, which can take long
        from petransfer.models.complete_weights import refuse_damaged_files  # imports torch

        refuse_damaged_files(spec)
    recipe = resolve(recipe)
    metrics = list(dict.fromkeys([*(recipe.task.metrics or ()), *request.metrics]))
    content["task"] |= {"options": recipe.task.options, "metrics": metrics}
    _fill(content, recipe, model, request, overrides)
    for override in overrides:  # explicit values take precedence over defaults
        apply_override(content, override)
    _check_max_minutes(request, content["train"], overrides)
    _convert_epochs(content, request, overrides)
    return content


def _refuse_epochs(overrides: Sequence[str]) -> None:
    """Raise UserError for an override of `train.epochs` alone. The recipe has a number of steps, which excludes it."""
    keys = [overridden_key(one) for one in overrides]
    if ["train", "epochs"] in keys and ["train", "steps"] not in keys:
        raise UserError("--set train.epochs: use --epochs instead, such as --epochs 2")


def _with_overridden_method(request: TrainRequest, overrides: Sequence[str]) -> TrainRequest:
    """Return the request with the method that an override of `methods.0.name` sets. Defaults depend on the method."""
    methods: dict[str, Any] = {"methods": [{"name": request.method}]}
    for override in overrides:
        if overridden_key(override) == ["methods", "0", "name"]:
            apply_override(methods, override)
    return replace(request, method=str(methods["methods"][0]["name"]))


def _check_max_minutes(request: TrainRequest, train: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise UserError if the recipe lacks the time limit of the request."""
    if not request.max_minutes or (train.get("early_stopping") or {}).get("max_minutes"):
        return
    if any(overridden_key(one)[:2] in (["train"], ["train", "early_stopping"]) for one in overrides):
        raise UserError(
            "--max-minutes is a part of train.early_stopping, which --set replaces; remove one of them, or use --set "
            f"train.early_stopping.max_minutes={request.max_minutes:g}"
        )
    raise UserError("--max-minutes needs early stopping: add --early-stopping 6, or remove --steps and --epochs")


def _options(data: str, request: TrainRequest) -> dict[str, Any]:
    options: dict[str, Any] = {
        "train": data,
        "dev": request.dev,
        "test": request.test,
        "max_length": request.max_length,
        "input": request.input_column,
        "target": request.target_column,
        "template": request.template,
        "bad_rows": "skip" if request.skip_bad_rows else None,
        **request.options,
    }
    return {key: value for key, value in options.items() if value is not None}


def _method(request: TrainRequest, embedded: bool, has_bf16: bool) -> dict[str, Any]:
    method: dict[str, Any] = {"name": request.method}
    # the default is 32 bits on a CPU, on a GPU without bf16, and for the checkpoints shipped with petransfer
    method["bits"] = (16 if has_bf16 and not embedded else 32) if request.bits is None else request.bits
    declared = METHODS.lookup(request.method)
    keys = declared.keys
    if request.rank is not None and "rank" not in keys:
        raise UserError(f"--rank: {declared.does_not_take('rank')}")
    if declared.trains_all_weights:
        return method | ({"rate_scaling": "rms"} if embedded else {})
    method |= {"rank": 16 if request.rank is None else request.rank} if "rank" in keys else {}
    trains_new = (embedded or request.add_tokens) and "embeddings" in keys
    return method | ({"embeddings": "new"} if trains_new else {})


def _checkpoint(model: str, request: TrainRequest) -> str | dict[str, Any]:
    """Return the recipe's entry for the arm: the model with the request's tokenizer settings."""
    settings = {
        "added_tokens": list(request.add_tokens),
        "source_language": request.source_language,
        "target_language": request.target_language,
    }
    given = {name: value for name, value in settings.items() if value}
    return {"checkpoint": model, **given} if given else model


def _fill(content: dict[str, Any], recipe: Recipe, model: str, request: TrainRequest, overrides: Sequence[str]) -> None:
    """Set the prefix and the training settings in `content`. Missing values get defaults."""
    from petransfer.models.architecture import configuration  # imports transformers

    spec = checkpoint_spec(model)
    config, _ = configuration(spec)
    prefixed = bool(_PREFIXED.fullmatch(model)) or _expects_prefix(config)
    content["task"]["prefix"] = request.prefix if request.prefix is not None else PREFIX if prefixed else ""
    rows = _used_rows(_with(content, request, overrides))
    content["train"]["batch_size"] = request.batch_size or min(BATCH, rows)
    overridden = _with(content, request, overrides)
    given = overridden.train
    batch = given.batch_size if isinstance(given.batch_size, int) else content["train"]["batch_size"]
    rate: float | dict[str, float] | None = request.learning_rate
    if rate is None:
        rate = _default_learning_rates(overridden.methods, config, is_embedded(spec.name))
    steps = given.steps if any(overridden_key(one) == ["train", "steps"] for one in overrides) else None
    length = _length(request, rows, batch, steps if isinstance(steps, int) else None)
    content["train"] = {**length, "batch_size": content["train"]["batch_size"], "learning_rate": rate}
    if request.packing:
        content["train"]["packing"] = True


def _expects_prefix(config: Any) -> bool:
    """Return whether a checkpoint is an original T5, which was trained with a prefix such as `summarize: `."""
    # config.json of other checkpoints, such as BART's for summaries, has settings for tasks too, but without a prefix
    tasks = getattr(config, "task_specific_params", None)
    prefixes = [one.get("prefix") for one in tasks.values() if isinstance(one, dict)] if isinstance(tasks, dict) else []
    return config.model_type in _T5_TYPES and any(isinstance(one, str) and one.strip() for one in prefixes)


def _length(request: TrainRequest, rows: int, batch: int, overridden: int | None) -> dict[str, Any]:
    """Return the training length in the recipe: steps or epochs, and early stopping.

    `overridden`: number of steps from an override, which replaces the number of steps returned here.
    """
    length: dict[str, Any]
    if request.epochs is not None:
        length, most = {"epochs": request.epochs}, math.ceil(request.epochs * rows / batch)
    else:
        default = min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(EPOCHS * rows / batch)))
        most = request.steps or request.max_steps or default
        length = {"steps": most}
    most = overridden or most
    if request.stops_early:
        stopping: dict[str, Any] = {
            "patience": request.early_stopping or PATIENCE,
            "every": min(most, max(EVALUATE_EVERY, most // EVALUATIONS)),
        }
        length["early_stopping"] = stopping | ({"max_minutes": request.max_minutes} if request.max_minutes else {})
    return length


def _default_learning_rates(methods: Sequence[MethodPart], config: Any, nano: bool) -> float | dict[str, float]:
    """Return the default peak learning rate of the methods, by method if they differ. See `default_learning_rate`."""
    # The default of full fine-tuning for a checkpoint that ships with petransfer is for `rate_scaling: rms`.
    rates = {
        part.name: default_learning_rate(
            part.name, config, nano and (part.rate_scaling == "rms" or not part.declared.trains_all_weights)
        )
        for part in methods
    }
    return rates if len(set(rates.values())) > 1 else rates[methods[0].name]


def default_learning_rate(method: str, config: Any, nano: bool) -> float:
    """Return the default peak learning rate of a method for a kind of model.

    Args:
        config: The transformers configuration of the model.
        nano: Whether the checkpoint ships with petransfer.
    """
    hub = DECODER if not config.is_encoder_decoder else T5 if config.model_type in _T5_TYPES else SEQ2SEQ
    declared = METHODS.lookup(method)
    own, others = declared.nano_learning_rate_factor, declared.learning_rate_factor
    return float(f"{NANO * own if nano else hub * others:.3g}")


def _with(content: Mapping[str, Any], request: TrainRequest, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of a content with overrides."""
    changed = copy.deepcopy(dict(content))
    for override in overrides:
        apply_override(changed, override)
    return recipe_of_options(changed, overrides, request.steps_option)


def _used_rows(recipe: Recipe) -> int:
    """Return the number of training rows that a run of the recipe uses."""
    if recipe.task.options.get("bad_rows") != "skip":
        return _rows(recipe)
    return len(used_data(expand(recipe)[0].spec, recipe.data_dir).train)


def _rows(recipe: Recipe) -> int:
    """Return the number of training rows, including rows that the tokenizer or `max_length` rejects."""
    task = task_of(recipe)
    return task.train_size(task.splits[0])


def _convert_epochs(content: dict[str, Any], request: TrainRequest, overrides: Sequence[str]) -> None:
    """Replace `epochs` with the number of steps if the run leaves out training rows that a recipe's epochs include.

    No tokenizer is loaded to find a recipe's run ids, so the epochs of a recipe count all rows.
    """
    train = content["train"]
    epochs, batch_size = train.get("epochs"), train.get("batch_size")
    if isinstance(epochs, int | float) and isinstance(batch_size, int):
        recipe = recipe_of_options(content, overrides, request.steps_option)
        rows = _used_rows(recipe)
        if rows != _rows(recipe):
            del train["epochs"]
            train["steps"] = math.ceil(epochs * rows / batch_size)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths of data files and local checkpoints.

    The run ids stay the same.
    """
    options = dict(recipe.task.options)
    for part in ("train", "dev", "test"):
        name = options.get(part)
        if isinstance(name, str):
            places = [recipe.data_dir / name] if recipe.data_dir else []
            found = [place for place in (*places, expanded(name)) if place.exists()]
            if found and (part == "train" or found[0].is_file()):
                options[part] = str(found[0].absolute())
    changes: dict[str, Any] = {"task": recipe.task.model_copy(update={"options": options})}
    if isinstance(recipe.family, FamilyPart):
        arms = {arm: _with_absolute_path(entry) for arm, entry in recipe.family.arms.items()}
        changes["family"] = recipe.family.model_copy(update={"arms": arms})
    return recipe.model_copy(update=changes)


def _with_absolute_path(entry: str | ArmPart) -> str | ArmPart:
    name = entry if isinstance(entry, str) else entry.checkpoint
    if not expanded(name).is_dir():
        return entry
    whole = str(expanded(name).absolute())
    return whole if isinstance(entry, str) else entry.model_copy(update={"checkpoint": whole})


def _file_name_part(text: str) -> str:
    """Return a text as part of a file name: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "mine"
