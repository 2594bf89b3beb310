"""Describe and check the settings of `petransfer train`, which become a recipe in `quick_recipe`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from petransfer.errors import UserError, unknown
from petransfer.python_arguments import checked_list, checked_path, shown_value


@dataclass(frozen=True)
class TrainRequest:
    """The settings of `train`. None selects the default.

    Attributes:
        method: The PEFT method, or `full` for all weights.
        rank: The rank of the method.
        bits: Bits per weight of the base model: 32, 16, 8 or 4.
        steps: A fixed number of optimiser steps, by default without early stopping.
        epochs: Like `steps`, as a number of passes over the training rows.
        max_steps: The largest number of steps with early stopping.
        early_stopping: The patience, in evaluations on dev without an improvement. 0: no early stopping.
        max_minutes: The longest training time in minutes.
        learning_rate: The optimiser's peak learning rate.
        batch_size: Examples per batch.
        packing: Put several training examples into one row (decoder-only models).
        max_length: The largest number of tokens of an input or a target. Longer rows are refused.
        prefix: Text in front of every input.
        seeds: The seeds, one training per seed.
        dev, test: A file, a share of the rows (0 to 1), or a number of rows.
        input_column, target_column: The names of the columns with the inputs and the targets.
        template: A text that makes the input from columns, such as `summarize: {document}`.
        metrics: Metrics in addition to exact match.
        skip_bad_rows: Leave unusable rows out and list them.
        folds: The number of folds of a cross-validation.
        add_tokens: Characters to add to the tokenizer: `newline`, `return`, `tab`, `braces`, or the characters
            themselves.
        source_language, target_language: Languages in the tokenizer's own codes, such as `eng_Latn`.
        options: Other options for reading the data, such as `delimiter`.
    """

    method: str = "lora"
    rank: int | None = None
    bits: int | None = None
    steps: int | None = None
    epochs: float | None = None
    max_steps: int | None = None
    early_stopping: int | None = None
    max_minutes: float | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    packing: bool = False
    max_length: int | None = None
    prefix: str | None = None
    seeds: tuple[int, ...] = (0,)
    dev: str | float | None = None
    test: str | float | None = None
    input_column: str | None = None
    target_column: str | None = None
    template: str | None = None
    metrics: tuple[str, ...] = ()
    skip_bad_rows: bool = False
    add_tokens: tuple[str, ...] = ()
    source_language: str | None = None
    target_language: str | None = None
    folds: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, value in (("--dev", self.dev), ("--test", self.test)):
            if isinstance(value, str) and not value.strip():
                raise UserError(f"{part} is empty: give a share such as 0.1, a number of rows, or a file")
        for option, number in (("--epochs", self.epochs), ("--max-minutes", self.max_minutes)):
            if number is not None and not 0 < number < math.inf:
                raise UserError(f"{option} {number:g}: give a number above 0, such as 10")
        if self.early_stopping is not None and self.early_stopping < 0:
            raise UserError(f"--early-stopping {self.early_stopping}: give a number of evaluations, or 0 for none")
        for name in ("steps", "max_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a whole number of 1 or more")
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs both set the length of training; give one of them")
        if self.max_steps is not None and (self.steps is not None or self.epochs is not None):
            raise UserError("--max-steps works only with early stopping; remove it, or remove --steps and --epochs")

    @property
    def steps_option(self) -> str:
        """The option of `train` that sets the number of steps in the recipe."""
        return "--max-steps" if self.steps is None else "--steps"

    @property
    def stops_early(self) -> bool:
        """Whether training ends by early stopping."""
        if self.early_stopping is not None:
            return self.early_stopping > 0
        return self.steps is None and self.epochs is None


# The settings that are True or False.
_FLAGS = frozenset(field.name for field in fields(TrainRequest) if isinstance(field.default, bool))


def train_request(settings: Mapping[str, Any]) -> TrainRequest:
    """Return the request for the settings that were given to `petransfer.train`.

    Raises:
        UserError: A setting is unknown, or its value has the wrong type.
    """
    known = {field.name for field in fields(TrainRequest)}
    for name in settings:
        if name not in known:
            raise unknown("setting of train", name, known)
    given = {name: _readable(name, value) for name, value in settings.items()}
    try:
        checked = TypeAdapter(TrainRequest).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise UserError(f"{name} is {shown_value(settings[name])}: {first['msg']}") from None
    for name, value in given.items():  # pydantic takes True for the number 1
        values = value if isinstance(value, tuple | list) else (value,)
        if name not in _FLAGS and any(isinstance(one, bool) for one in values):
            raise UserError(f"{name} is {shown_value(settings[name])}; give a number, not True or False")
    # If a setting can be a share, pydantic converts a whole number such as 10 to 10.0. Then the given number is kept,
    # because 10 is a number of rows.
    converted = {name: getattr(checked, name) for name in given}
    return TrainRequest(
        **given
        | {
            name: one
            for name, one in converted.items()
            if isinstance(one, tuple | int) or (isinstance(one, float) and isinstance(given[name], str))
        }
    )


def _readable(name: str, value: Any) -> Any:
    """Return a setting of `petransfer.train` in the form that `TrainRequest` takes.

    Raises:
        UserError: The value is a table, or one seed without a list.
    """
    if name == "add_tokens" and isinstance(value, str):
        return split_tokens(value)
    if name == "metrics" and isinstance(value, str):
        return (value,)
    if name == "seeds":
        return tuple(checked_list(value, name))
    if name in ("dev", "test") and not isinstance(value, str | int | float | None):
        return checked_path(value, name)
    return value


def split_tokens(text: str) -> tuple[str, ...]:
    """Return the tokens in a text, which are separated by commas. A comma alone is a token.

    >>> split_tokens("newline,tab")
    ('newline', 'tab')
    """
    return tuple(token for token in text.split(",") if token) or tuple(text[:1])
