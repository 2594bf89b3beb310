"""Validate petransfer.json and result.json from an unknown source."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from petransfer.errors import UserError, reason_of
from petransfer.recipe.run_spec import CheckpointSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec
from petransfer.sharing.bundle_files import PROVENANCE, RECIPE
from petransfer.sharing.safe_reading import read_json
from petransfer.study.file_forms import first_wrong, wrong_part

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Claim(_Strict):
    exact_match: Annotated[float, Field(ge=0, le=100)]
    examples: Annotated[int, Field(gt=0)]


class _Configuration(_Strict):
    fields: dict[str, Any]
    tokens: dict[str, int | list[int] | None]
    sha256: Sha256


class _TokenIds(_Strict):
    tokens: Annotated[int, Field(ge=0)]
    sha256: Sha256


class _Base(_Strict):
    commit: Commit | None
    configuration: _Configuration | None = None  # missing in files of older versions
    weights_sha256: dict[str, Sha256]
    tensors_sha256: Sha256 | None = None  # missing in files of older versions
    tokenizer_sha256: Sha256
    token_ids: _TokenIds | None = None  # missing in files of older versions
    # missing in files of older versions, None for a tokenizer without this part
    sentencepiece_sha256: Sha256 | None = None
    chat_template_sha256: Sha256 | None = None
    bytes: Annotated[dict[str, Annotated[int, Field(gt=0)]], Field(min_length=1)]


class _Provenance(_Strict):
    run_id: str
    spec: dict[str, Any]
    base: _Base | None = None  # missing in files of older versions
    encoder_decoder: bool = True
    data_sha256: dict[Literal["train", "dev", "test"], Sha256] = {}
    claims: dict[Literal["dev", "test"], _Claim] = {}
    labels: list[str] = []  # missing in files of older versions
    files: dict[str, Sha256] = {}


class _Score(_Strict):
    exact_match: Annotated[float, Field(ge=0, le=100)]
    examples: Annotated[int, Field(gt=0)]
    log_prob_per_token: float = 0.0
    disagreements: int = 0
    categories: dict[str, _Claim] = {}


class _Environment(_Strict):
    packages: dict[str, str] = {}
    device: str = ""


class _Result(_Strict):
    dev: _Score
    test: _Score
    parameters: int = 0
    trained_parameters: int = 0
    train_seconds: float = 0.0
    environment: _Environment = _Environment()


def check_result(content: dict[str, Any]) -> None:
    """Raise UserError if a value in result.json has the wrong type or is out of range."""
    _check(_Result, content, "result.json")


class _Task(BaseModel):
    options: dict[str, str | int | float] = {}


class _Recipe(BaseModel):
    name: str = ""
    task: _Task = _Task()


def check_recipe(content: dict[str, Any]) -> None:
    """Raise UserError if one of the values that petransfer reads from recipe.yaml has the wrong type."""
    _check(_Recipe, content, RECIPE)


def _check(model: type[BaseModel], content: dict[str, Any], file: str) -> None:
    wrong = wrong_part(model, content)
    if wrong:
        raise UserError(f"{file} is damaged ({wrong}); get the adapter again")


def spec_of_run(folder: Path) -> RunSpec:
    """Return the spec of a run on this machine, from spec.json. It has the places of local files.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "spec.json"
    content = read_json(path)
    try:
        return RunSpec.from_dict(content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        _refuse_unknown_field(content, str(path))
        reason = reason_of(f"{type(error).__name__}: {error}", 80)
        raise UserError(f"{path} is damaged ({reason}); restore it, or use a bundle of the adapter") from None


def _refuse_unknown_field(spec: Any, file: str) -> None:
    """Raise UserError if the content of a spec has a field that this version of petransfer does not know."""
    parts = {"checkpoint": CheckpointSpec, "task": TaskSpec, "method": MethodSpec, "train": TrainSpec}
    for part, kind in parts.items():
        given = spec.get(part) if isinstance(spec, dict) else None
        known = {field.name for field in fields(kind)}
        other = next((name for name in given if name not in known), None) if isinstance(given, dict) else None
        if other is not None:
            raise UserError(
                f"{file} has the field {part}.{other!s:.40}, which this version of petransfer does not know; install "
                "the version that made the adapter, or a later one"
            )


def spec_in(content: dict[str, Any]) -> RunSpec:
    """Check the content of a petransfer.json, and return the run's spec in it.

    Raises:
        UserError: a value has the wrong type, the spec contains a path, or the run id does not fit the spec.
    """
    try:
        _Provenance.model_validate(content)
        if content.get("base", {}) is None:
            raise ValueError("base is null")
        spec = RunSpec.from_dict(content["spec"])
        TypeAdapter(RunSpec).validate_python(spec.as_dict())
        run_id = spec.run_id
    except ValidationError as error:
        raise UserError(f"{PROVENANCE} is damaged ({first_wrong(error)}); get the adapter again") from None
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        _refuse_unknown_field(content["spec"], PROVENANCE)
        raise UserError(
            f"{PROVENANCE} is damaged ({type(error).__name__}: {reason_of(error, 80)}); get the adapter again"
        ) from None
    if run_id != content["run_id"]:
        claimed = content["run_id"][:20]
        raise UserError(f"{PROVENANCE} is refused: its description of the run gives the id {run_id}, not {claimed!r}")
    if spec.checkpoint.source or spec.checkpoint.tokenizer_source or spec.task.source:
        raise UserError(f"{PROVENANCE} is refused: it names a place on a machine")
    return spec
