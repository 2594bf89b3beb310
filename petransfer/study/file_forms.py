"""The forms of JSON files in a study's folder: the types of the values that are read. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from petransfer.errors import reason_of


class Form(BaseModel):
    """The form of a JSON object. Other keys are allowed."""

    model_config = ConfigDict(strict=True)


def wrong_part(form: type[BaseModel], content: Any) -> str:
    """Find the first value that does not have the expected form.

    Returns:
        The key of the value and the problem, such as `groups.0.arm: this key is missing`. Empty without a problem.
    """
    try:
        form.model_validate(content)
    except ValidationError as error:
        return first_wrong(error)
    return ""


def first_wrong(error: ValidationError) -> str:
    """Return the place and the message of pydantic's first error."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    problem = "this key is missing" if first["type"] == "missing" else reason_of(first["msg"], 80)
    return f"{reason_of(place or 'the file', 80)}: {problem}"


class _Environment(Form):
    packages: dict[str, str]
    python: str
    device: str
    threads: int
    cpu: str | None = None


class _Wide(Form):
    why: str | None = None


class _Cost(Form):
    loss_at_16_bits: float
    loss: float


class _Weights(Form):
    bytes: dict[str, int]
    share: dict[str, float]
    wide: dict[str, _Wide] = {}
    quantisation: _Cost | None = None


class ResultForm(Form):
    """The parts of result.json that are no scores. Files of older versions do not have all of them."""

    environment: _Environment | None = None
    weights: _Weights | None = None
    best_step: int | None = None
    stop_reason: str | None = None


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _SweptRun(Form):
    dev_em: _Finite | None
    dev_loss: _Finite | None
    status: str


class _Rate(Form):
    rate: _Positive
    dev_em: _Finite | None
    dev_loss: _Finite | None
    runs: list[_SweptRun]


class _SweptGroup(Form):
    arm: str
    method: str
    name: str
    steps: int
    own_steps: int
    own_rate: _Positive
    chosen: _Positive | None
    edge: Literal["highest", "lowest", "only"] | None
    rates: Annotated[list[_Rate], Field(min_length=1)]


class SweepForm(Form):
    """The content of sweep.json."""

    study: str
    learning_rate: dict[str, float]
    groups: list[_SweptGroup]


class PretrainingForm(Form):
    """The content of a pretraining's spec.json."""

    settings: dict[str, Any]
    corpus_sha256: str
