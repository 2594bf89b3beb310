"""A recipe's grid: every run that it asks for, each with its content-addressed id. Loads no checkpoint, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from petransfer.checkpoints.registry import Arm, Family, own_family, registered_family
from petransfer.errors import UserError, unknown
from petransfer.recipe.schema import FamilyPart, MethodPart, Recipe, sides
from petransfer.recipe.spec import MethodSpec, RunSpec, TaskSpec, TrainSpec
from petransfer.tasks import load_task

METHODS = ("lora", "full")


@dataclass(frozen=True)
class Cell:
    """A run with the names that tables call its parts by."""

    arm: str
    method: str
    split: str
    seed: int
    spec: RunSpec

    @property
    def run_id(self) -> str:
        """The id of its folder."""
        return self.spec.run_id


def family_of(recipe: Recipe, folder: Path = Path()) -> Family:
    """The family that a recipe names or describes."""
    if isinstance(recipe.family, FamilyPart):
        return own_family(recipe.family.name, recipe.family.arms, recipe.family.prefix, folder)
    return registered_family(recipe.family)


def expand(recipe: Recipe) -> list[Cell]:
    """All runs, seed by seed, so that a table's rows fill up together; runs that are the same stand once.

    Raises:
        UserError: a task, its option, an arm, split, method, learning rate or effect is unknown.
    """
    family = family_of(recipe)
    known = load_task(recipe.task.name, None, **recipe.task.options).splits
    for split in recipe.task.splits:
        if split not in known:
            raise unknown(f"split of {recipe.task.name}", split, known)
    for method in recipe.methods:
        if method.name not in METHODS:
            raise unknown("method", method.name, METHODS)
    arms = [family.arm(name) for name in recipe.arms]
    _check_rates(recipe, family)
    _check_effects(recipe)
    cells: dict[str, Cell] = {}
    for seed in recipe.seeds:
        for split in recipe.task.splits:
            for arm in arms:
                for method in recipe.methods:
                    cell = _cell(recipe, arm, method, split, seed)
                    cells.setdefault(cell.run_id, cell)
    return list(cells.values())


def _cell(recipe: Recipe, arm: Arm, method: MethodPart, split: str, seed: int) -> Cell:
    if arm.trained == "all" and method.name != "full":
        method = next(
            (part for part in recipe.methods if part.name == "full"),
            MethodPart(name="full", rate_scaling="rms", bits=32),
        )
    prefix = arm.prefix if recipe.task.prefix is None else recipe.task.prefix
    spec = RunSpec(
        checkpoint=arm.checkpoint,
        task=TaskSpec(recipe.task.name, split, prefix, tuple(sorted(recipe.task.options.items()))),
        method=_method(method),
        train=_training(recipe, arm.name, method),
        seed=seed,
    )
    return Cell(arm.name, method.label, split, seed, spec)


def _method(part: MethodPart) -> MethodSpec:
    if part.name != "lora":
        return MethodSpec(part.name, part.bits)
    targets = part.targets if isinstance(part.targets, str) else tuple(part.targets)
    alpha = float(2 * part.rank if part.alpha is None else part.alpha)
    return MethodSpec(part.name, part.bits, part.rank, alpha, float(part.dropout), targets, part.embeddings)


def _training(recipe: Recipe, arm: str, method: MethodPart) -> TrainSpec:
    part = recipe.train
    rates = part.learning_rate
    rate = rates if isinstance(rates, float) else rates.get(arm, rates.get(method.name, 0.0))
    if not rate:
        raise UserError(
            f"train.learning_rate has no rate for method {method.name} (arm {arm}); add {method.name}: 1e-3"
        )
    return TrainSpec(
        steps=part.steps,
        batch_size=part.batch_size,
        learning_rate=float(rate),
        warmup=float(part.warmup),
        schedule=part.schedule,
        final=float(part.final),
        rate_scaling=method.rate_scaling,
        weight_decay=float(part.weight_decay),
        max_grad_norm=float(part.max_grad_norm),
    )


def _check_rates(recipe: Recipe, family: Family) -> None:
    if isinstance(recipe.train.learning_rate, dict):
        for name in recipe.train.learning_rate:
            if name not in (*METHODS, *family.arm_names):
                raise unknown("name in train.learning_rate", name, (*METHODS, *family.arm_names))


def _check_effects(recipe: Recipe) -> None:
    for effect in recipe.effects:
        if not sides(effect, recipe.arms):
            raise UserError(
                f"effects: '{effect}' is no contrast of two of the arms {', '.join(recipe.arms)}; write a-b"
            )
