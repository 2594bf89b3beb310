"""The grid of a recipe: all runs with their ids. Imports no torch and loads no checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from petransfer.data import LinesTask, Task, load_task
from petransfer.data.task_registry import categories_in
from petransfer.errors import UserError, unknown
from petransfer.evaluation.metric_checks import check_metrics
from petransfer.models.own_families import SEED, arm_checkpoint, base_arm, own_family, with_hashes
from petransfer.models.registry import CONTROLS, Arm, Family, registered_family
from petransfer.recipe.effect_requests import labels_matching, refuse_effects_of_other_arms, requested_effects
from petransfer.recipe.method_part import MethodPart, method_of
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import EarlyStopping, Options, RunSpec, TaskSpec, TrainSpec
from petransfer.recipe.schema import FamilyPart, Recipe, TrainPart, check_judge


@dataclass(frozen=True)
class Cell:
    """One run of the grid: names of arm, method and split, the seed, and the specification."""

    arm: str
    method: str
    split: str
    seed: int
    spec: RunSpec

    @property
    def run_id(self) -> str:
        return self.spec.run_id


def family_of(recipe: Recipe, seed: int | None = None) -> Family:
    """Return the checkpoint family of a recipe. seed: value for `{seed}` in checkpoint names."""
    if isinstance(recipe.family, FamilyPart):
        # only the user's own checkpoints can have names with `{seed}`
        return own_family(recipe.family, recipe.seeds[0] if seed is None else seed)
    return registered_family(recipe.family)


def _arms_by_seed(recipe: Recipe) -> Iterator[tuple[int, list[Arm]]]:
    """Yield each seed with the arms that are trained with it. The same seed can come twice, with different arms."""
    # seeds come first: every arm gets its first result before any arm gets a second one
    for seed in recipe.seeds:
        family = family_of(recipe, seed=seed)
        yield seed, [family.arm(name) for name in recipe.arms]
    more = {name: recipe.more_seeds.get(name, []) for name in recipe.arms}
    for seed in dict.fromkeys(seed for seeds in more.values() for seed in seeds):
        yield seed, [_arm_of_more_seeds(recipe, name, seed) for name, seeds in more.items() if seed in seeds]


def _arm_of_more_seeds(recipe: Recipe, name: str, seed: int) -> Arm:
    """Return an arm for one of its further seeds, for which the other arms may have no checkpoint."""
    if not isinstance(recipe.family, FamilyPart):
        return registered_family(recipe.family).arm(name)
    source = _checkpoint_arm(recipe.family, name)
    if source is None:  # only random weights, so the checkpoint gives nothing but the configuration and the tokenizer
        return family_of(recipe).arm(name)
    return own_family(recipe.family, seed, only={source}).arm(name)


def _checkpoint_arm(family: FamilyPart, name: str) -> str | None:
    """Return the arm whose pretrained weights an arm uses. None for a control with random weights only."""
    if name not in CONTROLS:
        return name
    return None if CONTROLS[name].reinit == "all" else CONTROLS[name].arm or base_arm(family)


def expand(recipe: Recipe) -> list[Cell]:
    """Return all runs of a recipe, ordered by seed. Equal runs are listed once.

    Raises:
        UserError: A name in the recipe is unknown, or a learning rate, batch size or training length is missing.
    """
    family = family_of(recipe)
    task = task_of(recipe)
    splits = recipe.task.splits or task.splits
    for split in splits:
        if split not in task.splits:
            raise unknown(f"split of {recipe.task.name}", split, task.splits)
    for name in recipe.arms:
        family.arm(name)  # refuse an unknown arm before any other check
    _check_names(recipe, family)
    refuse_effects_of_other_arms(recipe, family.arm_names)
    for effect in requested_effects(recipe):
        categories_in(recipe.task.name, effect.categories)  # refuse unknown categories
    data = _data(recipe, task)
    cells: dict[str, Cell] = {}
    for seed, arms in _arms_by_seed(recipe):
        for split in splits:
            for arm in arms:
                for method in recipe.methods:
                    examples = task.train_size(split) if recipe.train.epochs is not None else 0
                    cell = _cell(recipe, arm, method, replace(data, split=split), seed, examples)
                    cells.setdefault(cell.run_id, cell)
    return list(cells.values())


def refuse_twin_arms(recipe: Recipe, cells: Sequence[Cell]) -> None:
    """Raise UserError for an arm whose runs all equal runs of another arm.

    Args:
        cells: The runs of the recipe (see `expand`).
    """
    arms = {cell.run_id: cell.arm for cell in cells}
    for arm in recipe.arms:
        if arm not in arms.values():
            alone = expand(recipe.model_copy(update={"arms": [arm], "effects": []}))
            raise UserError(
                f"arms: every run of {arm} equals a run of {arms[alone[0].run_id]}, because both have the same "
                f"checkpoint ({alone[0].spec.checkpoint.name}), prefix and training; remove one of the two"
            )


def task_of(recipe: Recipe) -> Task:
    """Return the task of a recipe, with the recipe's options and data folder."""
    return load_task(recipe.task.name, recipe.data_dir, **recipe.task.options)


def resolve(recipe: Recipe) -> Recipe:
    """Return the recipe, completed with values from the user's own files.

    These values are hashes of the data and of checkpoints, and metrics that suit the data.
    """
    if isinstance(recipe.family, FamilyPart) and any(
        SEED in arm_checkpoint(arm) for arm in recipe.family.arms.values()
    ):
        recipe = recipe.model_copy(
            update={"family": with_hashes(recipe.family, _checkpoint_seeds(recipe, recipe.family))}
        )
    task = task_of(recipe)
    if not isinstance(task, LinesTask):
        return recipe
    identity = task.identity()
    options: dict[str, Any] = dict(recipe.task.options)
    options |= {key: identity[key] for key in ("sha256", "chat") if key in identity}
    metrics = list(recipe.task.metrics or task.suggested_metrics())
    check_judge(recipe.judge_by, metrics)
    part = recipe.task.model_copy(update={"options": options, "metrics": metrics})
    return recipe.model_copy(update={"task": part})


def _checkpoint_seeds(recipe: Recipe, family: FamilyPart) -> dict[str, list[int]]:
    """Return, for each arm of a family, the seeds for which its checkpoint is needed."""
    found = {arm: list(recipe.seeds) for arm in family.arms}
    for name, seeds in recipe.more_seeds.items():
        source = _checkpoint_arm(family, name)
        if name in recipe.arms and source in found:
            found[source] += [seed for seed in seeds if seed not in found[source]]
    return found


def data_notes(recipe: Recipe) -> list[str]:
    """Return remarks on the user's own data, one sentence each. Empty for a benchmark."""
    task = task_of(recipe)
    if not isinstance(task, LinesTask):
        return []
    given = recipe.task.prefix
    prefixes = list(given.values()) if isinstance(given, Mapping) else [given or ""]
    texts = [*(("prefix", prefix) for prefix in prefixes), ("template", task.template)]
    return [*task.notes(), *filter(None, (_escape_note(what, text) for what, text in texts))]


def _escape_note(what: str, text: str) -> str:
    r"""Return a warning about \n or \t as two characters, which a shell does not replace. '' without them."""
    if not (found := re.search(r"\\[nt]", text)):
        return ""
    wanted = "a line break" if found[0] == r"\n" else "a tab"
    return (
        f"warning: the {what} has {found[0]} as two characters, a backslash and a letter; for {wanted}, write it into "
        f"the text itself, or in bash write $'...{found[0]}...'"
    )


def _data(recipe: Recipe, task: Task) -> TaskSpec:
    """Return the `TaskSpec` of all runs, with an empty split and prefix."""
    options: dict[str, Any] = dict(recipe.task.options)
    metrics: tuple[str, ...] = tuple(recipe.task.metrics)
    source: dict[str, str | int | float] = {}
    if isinstance(task, LinesTask):
        options, source = task.identity(), task.local_options()
        metrics = metrics or task.suggested_metrics()
    check_metrics(metrics, lambda: _targets(task))
    return TaskSpec(recipe.task.name, "", "", Options(options), metrics, Options(source))


def _targets(task: Task) -> tuple[int, str]:
    """Return the number of different targets and the name of the training data."""
    if not isinstance(task, LinesTask):
        # the targets of a benchmark are not known before the benchmark's files are read
        raise UserError(f"{task.name} has no closed set of targets; use exact_match instead of accuracy or macro_f1")
    try:
        return int(task.about()["targets"]), task.train
    except UserError:
        if task.sha256:  # an earlier call has checked the data; a study can be opened after its data was removed
            return 0, task.train
        raise


# The method for an arm that trains all weights, such as `scratch`, if no method of the recipe trains all weights.
WHOLE = MethodPart(name="full", rate_scaling="rms", bits=32)


def _cell(recipe: Recipe, arm: Arm, method: MethodPart, data: TaskSpec, seed: int, examples: int) -> Cell:
    if arm.trained == "all" and not method.declared.trains_all_weights:
        method = next((part for part in recipe.methods if part.declared.trains_all_weights), WHOLE)
    own = recipe.task.prefix
    prefix = own if isinstance(own, str) else (own or {}).get(arm.name, arm.prefix)
    spec = RunSpec(
        checkpoint=arm.checkpoint,
        task=replace(data, prefix=prefix),
        method=method_of(method),
        train=_training(recipe.train, arm.name, method, examples),
        seed=seed,
    )
    return Cell(arm.name, method.label, data.split, seed, spec)


def _training(part: TrainPart, arm: str, method: MethodPart, examples: int) -> TrainSpec:
    batch_size = _value_for(part.batch_size, "batch_size", arm, method)
    steps = None if part.steps is None else int(_value_for(part.steps, "steps", arm, method))
    if part.epochs is not None:  # the last batch of an epoch is filled from the next epoch
        steps = math.ceil(_value_for(part.epochs, "epochs", arm, method) * examples / batch_size)
    assert steps is not None
    return TrainSpec(
        steps=steps,
        batch_size=int(batch_size),
        learning_rate=float(_value_for(part.learning_rate, "learning_rate", arm, method)),
        warmup=float(part.warmup),
        schedule=part.schedule,
        final=float(part.final),
        rate_scaling=method.rate_scaling,
        weight_decay=float(part.weight_decay),
        max_grad_norm=float(part.max_grad_norm),
        optimizer=part.optimizer,
        early_stopping=EarlyStopping(**part.early_stopping.model_dump()) if part.early_stopping else None,
        packing=part.packing,
    )


def _value_for(value: float | Mapping[str, float], key: str, arm: str, method: MethodPart) -> float:
    """Return the value of a training setting for an arm and a method."""
    if isinstance(value, int | float):
        return value
    # A key is an arm with a method (`english lora`), an arm, or a method, in this order of precedence. Of several keys
    # with an arm and a method, the key with the most words is used.
    found = value.get(arm, value.get(method.name))
    pairs = [name for name in value if " " in name and _applies_to(name, arm, method.label)]
    if pairs:
        most = max(len(name.split()) for name in pairs)
        first, *others = [name for name in pairs if len(name.split()) == most]
        if others:
            raise UserError(f"train.{key}: '{first}' and '{others[0]}' both apply to {arm}, {method.label}; keep one")
        return value[first]
    if found is None:
        noun, example = _EXAMPLES[key]
        raise UserError(f"train.{key} has no {noun} for method {method.name} (arm {arm}); add {method.name}: {example}")
    return found


def _applies_to(pair: str, arm: str, label: str) -> bool:
    """Return whether a key such as `english 4-bit` names this arm and this method."""
    words = pair.removeprefix(f"{arm} ")
    return words != pair and bool(labels_matching(words, [label]))


_EXAMPLES = {
    "learning_rate": ("learning rate", "1e-3"),
    "steps": ("number", "5000"),
    "epochs": ("number", "20"),
    "batch_size": ("size", "32"),
}


def _check_names(recipe: Recipe, family: Family) -> None:
    for name in recipe.task.prefix if isinstance(recipe.task.prefix, dict) else ():
        if name not in family.arm_names:
            raise unknown("name in task.prefix", name, family.arm_names)
    for name in recipe.more_seeds:
        if name not in family.arm_names:
            raise unknown("name in more_seeds", name, family.arm_names)
    known = (*METHODS, *family.arm_names)
    labels = [*METHODS, *(part.label for part in (*recipe.methods, WHOLE))]
    for key in _EXAMPLES:
        value = getattr(recipe.train, key)
        for name in value if isinstance(value, dict) else ():
            if name in known or any(_applies_to(name, arm, label) for arm in family.arm_names for label in labels):
                continue
            methods = dict.fromkeys(part.name for part in (*recipe.methods, WHOLE))
            pairs = [f"{arm} {method}" for arm in recipe.arms for method in methods]
            raise unknown(f"name in train.{key}", name, pairs if " " in name else known)
