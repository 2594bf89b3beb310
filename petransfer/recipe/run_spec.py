"""RunSpec: every setting that can change the numbers of one run, and the run id computed from them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

Bits = Literal[4, 8, 16, 32]
Reinit = Literal["none", "embeddings", "body", "all"]
Embeddings = Literal["frozen", "new", "used", "trained"]
Schedule = Literal["linear", "cosine", "constant"]
RateScaling = Literal["none", "rms"]
Optimizer = Literal["adamw", "adamw-8bit", "paged-adamw-8bit"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
"""The optimisers, from the one that needs the most memory to the one that needs the least."""
StoppingMetric = Literal["exact_match", "loss"]

# Fields that were added later, as (part, name, default). If such a field has its default, it is left out of the run id,
# so that older runs keep their ids.
ADDED_LATER: tuple[tuple[str, str, object], ...] = (
    ("checkpoint", "added_tokens", []),
    ("checkpoint", "source_language", None),
    ("checkpoint", "target_language", None),
    ("train", "optimizer", "adamw"),
    ("train", "early_stopping", None),
    ("train", "packing", False),
    ("method", "keep_wide", []),
    ("method", "layers", []),
    ("method", "virtual_tokens", 0),
    ("method", "rate_ratio", 0.0),
    ("method", "match_parameters", 0),
    ("method", "options", []),
    ("task", "metrics", []),
)

# Fields that only locate a file on this machine; they do not affect any result.
LOCAL_FIELDS = (("checkpoint", "source"), ("checkpoint", "tokenizer_source"), ("task", "source"))

# Increased when a change of the code changes the results of all runs.
NUMBERS_VERSION = 2


OptionValue = str | int | float


class Options(Mapping[str, OptionValue]):
    """An immutable, hashable mapping of options. In JSON: a list of [name, value], sorted by name."""

    def __init__(self, values: Mapping[str, OptionValue] | Iterable[tuple[str, OptionValue]] = ()) -> None:
        self._values = dict(sorted(dict(values).items()))

    def __getitem__(self, name: str) -> OptionValue:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return f"Options({self._values})"

    def __or__(self, other: Mapping[str, OptionValue]) -> Options:
        return Options({**self, **other})

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
        """Let pydantic read options from a mapping or from (name, value) pairs."""
        from pydantic_core import core_schema  # imported here because only the validation of a spec needs pydantic

        return core_schema.no_info_plain_validator_function(cls)


@dataclass(frozen=True)
class CheckpointSpec:
    """The checkpoint that a run starts from.

    name: hub id, name of a local folder, or `nano/<arm>`.
    weights: version of the weights: a hub revision, or a sha256 of the files.
    reinit: the random weights: `none`, `embeddings`, `body` (all but the embeddings) or `all`.
    tokenizer: another checkpoint whose tokenizer is used. The embeddings are then random. A local folder is written as
        `name@sha256`.
    added_tokens: characters to add to the tokenizer. Known characters are not added.
    source_language, target_language: languages of inputs and targets, in the notation of a multilingual tokenizer.
    source, tokenizer_source: folders of a local checkpoint and of a local tokenizer. Not part of the run id.
    """

    name: str
    weights: str = "main"
    reinit: Reinit = "none"
    tokenizer: str | None = None
    source: str | None = None
    tokenizer_source: str | None = None
    added_tokens: tuple[str, ...] = ()
    source_language: str | None = None
    target_language: str | None = None


@dataclass(frozen=True)
class TaskSpec:
    """The examples that a run is trained and tested on.

    name, split: the task and its split.
    prefix: text before every input.
    options: options of the task.
    metrics: metrics in addition to exact match.
    source: options that only locate the examples on this machine. Not part of the run id, because `options` contains a
        hash of the examples.
    """

    name: str
    split: str
    prefix: str = ""
    options: Options = field(default_factory=Options)
    metrics: tuple[str, ...] = ()
    source: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", Options(self.options))
        object.__setattr__(self, "source", Options(self.source))

    @property
    def arguments(self) -> Options:
        """All options for loading the task on this machine: `options` and `source`."""
        return self.options | self.source

    @property
    def skips_bad_rows(self) -> bool:
        """Whether unusable rows are left out."""
        return self.source.get("bad_rows") == "skip"


@dataclass(frozen=True)
class MethodSpec:
    """The training method of a run. Fields that a method does not use keep their defaults; see `MethodPart`.

    keep_wide: endings of the names of layers that are not quantised at 8 and 4 bits, in addition to the output head.
    match_parameters: approximate number of parameters to train. It determines the rank or the number of virtual tokens
        for each checkpoint; an `alpha` of 0 then means twice the rank. 0: not set.
    options: additional options of this method.
    """

    name: str
    bits: Bits = 16
    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    embeddings: Embeddings = "frozen"
    keep_wide: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    virtual_tokens: int = 0
    rate_ratio: float = 0.0
    match_parameters: int = 0
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        _convert_to_float(self)
        object.__setattr__(self, "options", Options(self.options))


def unused_keep_wide(bits: int) -> str:
    """Return the error message for `keep_wide` at 16 or 32 bits."""
    return (
        f"keep_wide names layers that are not quantised, but no layer is quantised at {bits} bits; "
        "remove keep_wide, or use bits: 8 or bits: 4"
    )


@dataclass(frozen=True)
class EarlyStopping:
    """The conditions that end a run before its last step. Only the dev set is used.

    patience: training stops after this number of evaluations in a row without an improvement.
    min_delta: smallest improvement, in percentage points of exact match or in per cent of the loss.
    every: optimiser steps between two evaluations on the dev set.
    max_minutes: time limit of training in minutes. 0: no limit. Runs with a time limit are not repeatable.
    metric: metric that determines the best state. With `exact_match`, the loss decides between states with equal
        exact match, and until exact match reaches 20 %, a lower loss is also an improvement.
    cooldown: training continues for this number of evaluations after `patience` has run out, while the learning rate
        falls linearly to zero. There is no cooldown if exact match has reached 100 %.
    """

    patience: int = 5
    min_delta: float = 0.5
    every: int = 100
    max_minutes: float = 0.0
    metric: StoppingMetric = "exact_match"
    cooldown: int = 0

    def __post_init__(self) -> None:
        _convert_to_float(self)


@dataclass(frozen=True)
class TrainSpec:
    """The optimisation of one run: AdamW on `batch_size` examples per step.

    optimizer: `adamw-8bit` stores AdamW's two moments with 8 bits per number (Dettmers et al. 2022).
        `paged-adamw-8bit` also moves the moments to the host's memory when the GPU's memory is full.
    warmup: share of the steps during which the learning rate increases.
    final: last learning rate divided by the highest.
    early_stopping: conditions that end the run before `steps` steps. None: all steps are trained.
    packing: put several examples of a decoder-only model into one row. Each example attends only to its own tokens.
    rate_scaling: with `rms`, each tensor's learning rate is multiplied by the tensor's root mean square at the start,
        and its weight decay is divided by the root mean square. Thus every tensor changes in proportion to its size.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.05
    schedule: Schedule = "linear"
    final: float = 0.0
    rate_scaling: RateScaling = "none"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: Optimizer = "adamw"
    early_stopping: EarlyStopping | None = None
    packing: bool = False

    def __post_init__(self) -> None:
        _convert_to_float(self)
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))


@dataclass(frozen=True)
class RunSpec:
    """One run of a study: its checkpoint, task, method, training and seed.

    `version` increases when a change of petransfer changes the results of all runs.
    """

    checkpoint: CheckpointSpec
    task: TaskSpec
    method: MethodSpec
    train: TrainSpec
    seed: int
    version: int = NUMBERS_VERSION

    @functools.cached_property
    def run_id(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of `canonical_json`."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:12]

    def canonical_json(self) -> str:
        """Return the fields that determine the run id as JSON with sorted keys and no spaces."""
        content = self.as_dict()
        without_local_fields(content)
        # older specs keep their run ids: a field that was added later counts only if it differs from its default
        for part, name, default in ADDED_LATER:
            if content[part][name] == default:
                del content[part][name]
        stopping = content["train"].get("early_stopping", {})
        if not stopping.get("cooldown", 0):
            stopping.pop("cooldown", None)
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON values, which `from_dict` reads."""
        plain: dict[str, Any] = json.loads(json.dumps(self, default=_plain))
        return plain

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RunSpec:
        """Return the spec from the values of `as_dict`, also from an earlier version of petransfer."""
        task = {**content["task"], "metrics": tuple(content["task"].get("metrics", ()))}
        checkpoint = {**content["checkpoint"], "added_tokens": tuple(content["checkpoint"].get("added_tokens", ()))}
        method = {**content["method"]}
        if not isinstance(method["targets"], str):
            method["targets"] = tuple(method["targets"])
        for name in ("keep_wide", "layers"):
            method[name] = tuple(method.get(name, ()))
        train = {**content["train"]}
        if train.get("early_stopping") is not None:
            train["early_stopping"] = EarlyStopping(**train["early_stopping"])
        return cls(
            checkpoint=CheckpointSpec(**checkpoint),
            task=TaskSpec(**task),
            method=MethodSpec(**method),
            train=TrainSpec(**train),
            seed=content["seed"],
            version=content["version"],
        )


def without_local_fields(content: dict[str, Any]) -> dict[str, Any]:
    """Remove `LOCAL_FIELDS` from the values of `RunSpec.as_dict`, in place, and return the values."""
    for part, name in LOCAL_FIELDS:
        del content[part][name]
    return content


def _plain(spec: Any) -> Any:
    """Return a spec's fields as a dictionary, faster than `asdict`."""
    if isinstance(spec, Options):
        return list(spec.items())
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def _convert_to_float(spec: MethodSpec | TrainSpec | EarlyStopping) -> None:
    """Convert whole numbers in fields of type float: 1 and 1.0 give one run id."""
    for one in fields(spec):
        if one.type == "float":
            object.__setattr__(spec, one.name, float(getattr(spec, one.name)))
