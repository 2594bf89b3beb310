"""Changes that would make a training fit in memory, and the command-line options for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from petransfer.errors import UserError
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import MethodSpec, RunSpec


class Unpredictable(UserError):
    """Raised when the memory of an architecture cannot be predicted. Training is still possible.

    Attributes:
        problem: What cannot be predicted and why, without the advice that is the end of the message.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; train a few steps to measure it")
        self.problem = problem


@dataclass(frozen=True)
class Change:
    """One setting to change and its new value. `checkpointing` turns on gradient checkpointing and has no value."""

    key: Literal["checkpointing", "stack", "optimizer", "method", "bits"]
    value: str | int = ""


TURNED_ON = "with gradient checkpointing, which is turned on automatically"

# One piece of advice: changes that must be made together.
Advice = tuple[Change, ...]
# The command-line option for each key of a change. If a key is missing, the command does not support this change.
OptionNames = Mapping[str, str]

FIT_OPTIONS: OptionNames = {
    "checkpointing": "--gradient-checkpointing",
    "stack": "--stack {}",
    "optimizer": "--optimizer {}",
    "method": "--method {}",
    "bits": "--bits {}",
}
TRAIN_OPTIONS: OptionNames = {**FIT_OPTIONS, "optimizer": "--set train.optimizer={}"}
RECIPE_OPTIONS: OptionNames = {key: TRAIN_OPTIONS[key] for key in ("checkpointing", "stack", "optimizer")}


def recipe_options(methods: Sequence[MethodSpec], spec: RunSpec) -> OptionNames:
    """Return the options with which `run`, `plan` and `sweep` change the settings of a run."""
    # a model from scratch trains all weights with every method, so changing the method or the bits has no effect
    anew = spec.checkpoint.reinit == "all" and METHODS.lookup(spec.method.name).trains_all_weights
    if anew or spec.method not in methods:
        return RECIPE_OPTIONS
    part = f"--set methods.{methods.index(spec.method)}"
    return {**RECIPE_OPTIONS, "method": f"{part}.name={{}}", "bits": f"{part}.bits={{}}"}


def as_options(advice: Sequence[Advice], options: OptionNames) -> list[str]:
    """Return the options for each piece of advice. Advice without an option is left out."""
    possible = [changes for changes in advice if all(change.key in options for change in changes)]
    return [" ".join(options[change.key].format(change.value) for change in changes) for changes in possible]


def suggestion(advice: Sequence[Advice], options: OptionNames) -> str:
    """Return the end of an error message: the options with which the training would fit. Empty without options."""
    found = as_options(advice, options)
    return f"; it would fit with {', or '.join(found)}" if found else ""
