"""What would make a training fit, and how each verb is told so. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from petransfer.recipe.run_spec import MethodSpec, RunSpec


@dataclass(frozen=True)
class Change:
    """One thing that is asked for otherwise: an optimiser, a method, bits, or how many runs are trained as one.

    Of checkpointing the value is nothing.
    """

    key: Literal["checkpointing", "stack", "optimizer", "method", "bits"]
    value: str | int = ""


TURNED_ON = "with checkpointing, which is then turned on"

# Changes that go together.
Advice = tuple[Change, ...]
# By a change's key how a verb is asked for it; what has no words cannot be asked of it.
Words = Mapping[str, str]

OF_FIT: Words = {
    "checkpointing": "--checkpointing",
    "stack": "--stack {}",
    "optimizer": "--optimizer {}",
    "method": "--method {}",
    "bits": "--bits {}",
}
OF_TRAIN: Words = {**OF_FIT, "optimizer": "--set train.optimizer={}"}
OF_ANY_RECIPE: Words = {key: OF_TRAIN[key] for key in ("checkpointing", "stack", "optimizer")}


def of_recipe(methods: Sequence[MethodSpec], spec: RunSpec) -> Words:
    """As `run`, `plan` and `sweep` are told it. methods: the recipe's; what is drawn anew is trained whole by none."""
    anew = spec.checkpoint.reinit == "all" and spec.method.name == "full"
    if anew or spec.method not in methods:
        return OF_ANY_RECIPE
    part = f"--set methods.{methods.index(spec.method)}"
    return {**OF_ANY_RECIPE, "method": f"{part}.name={{}}", "bits": f"{part}.bits={{}}"}


def in_options(advice: Sequence[Advice], words: Words) -> list[str]:
    """Each advice as options."""
    sayable = [changes for changes in advice if all(change.key in words for change in changes)]
    return [" ".join(words[change.key].format(change.value) for change in changes) for changes in sayable]


def it_would(advice: Sequence[Advice], words: Words) -> str:
    """What stands behind `does not fit`; nothing where nothing helps."""
    said = in_options(advice, words)
    return f"; it would with {', or '.join(said)}" if said else ""
