"""The schema of studies' recipes. Unknown keys are errors; the message suggests the most similar known key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from petransfer.errors import UserError, unknown
from petransfer.plurals import listed
from petransfer.recipe.method_part import MethodPart, method_of
from petransfer.recipe.metrics import EXACT_MATCH, check_metric_name
from petransfer.recipe.run_spec import (
    Optimizer,
    Reinit,
    Schedule,
    StoppingMetric,
)
from petransfer.recipe.values import (
    FOLDER_NAME,
    LONGEST_LIST,
    LONGEST_NAME,
    MOST_RUNS,
    BatchSize,
    Count,
    FolderName,
    Name,
    Names,
    Parts,
    Real,
    Seeds,
    Strict,
    Text,
    Whole,
)
from petransfer.user_paths import expanded


class TaskPart(Strict):
    """The task that models are trained and tested on.

    name: name of a benchmark, such as `scan`, or `lines` for the user's own files.
    splits: the task's splits to use. Default: all.
    prefix: text before every input, in place of the family's prefix: one text for all arms, or a mapping from arms to
        texts.
    options: options of the task.
    metrics: metrics in addition to exact match.
    """

    name: Name
    splits: Names | None = None
    prefix: Text | dict[Name, Text] | None = None
    options: dict[str, str | Whole | Real] = {}
    metrics: list[str] = []

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: list[str]) -> list[str]:
        try:
            return [check_metric_name(name) for name in value]
        except UserError as error:
            raise ValueError(str(error)) from None


class ArmPart(Strict):
    """One of the user's own checkpoints with its settings.

    checkpoint: hub id or folder. `{seed}` is replaced by the run's seed. Each seed can thus have its own checkpoint.
    sha256: hash of a folder's files, or one hash per seed. A study records the hash when it starts. The study can then
        still be read after the folder was removed.
    revision: revision of a hub id.
    tokenizer: another hub id or folder whose tokenizer is used. The embeddings are then random.
    reinit: the random weights: `none`, `embeddings`, `body` (all but the embeddings) or `all`.
    prefix, source_language, target_language: values for this arm, in place of the family's values.
    added_tokens: characters to add to the tokenizer: `newline`, `return` (carriage return), `tab`, `braces`, or the
        characters themselves. Known characters are not added.
    """

    checkpoint: str
    sha256: str | dict[Whole, str] | None = Field(default=None, exclude_if=lambda value: value is None)
    revision: str | None = None
    tokenizer: str | None = None
    reinit: Reinit = "none"
    prefix: str | None = None
    added_tokens: list[str] = Field(default=[], exclude_if=lambda value: not value)
    source_language: str | None = Field(default=None, exclude_if=lambda value: value is None)
    target_language: str | None = Field(default=None, exclude_if=lambda value: value is None)


class FamilyPart(Strict):
    """The user's own checkpoints, one per arm: hub ids (`owner/name@revision`) or folders.

    name: name of the family, in tables and reports.
    arms: a checkpoint for each arm, or a mapping with the checkpoint and its settings.
    base: the arm with the architecture of the controls `scratch` and `random`. Default: `english`, or else the first
        arm.
    prefix: text before every input.
    source_language, target_language: languages of inputs and targets, in the notation of the tokenizers of mBART,
        M2M100 and NLLB (`en_XX`, `en`, `eng_Latn`).
    """

    name: Name
    arms: Annotated[dict[Name, str | ArmPart], Field(min_length=1)]
    base: str | None = None
    prefix: str = ""
    source_language: str | None = Field(default=None, exclude_if=lambda value: value is None)
    target_language: str | None = Field(default=None, exclude_if=lambda value: value is None)


# Learning rates must be below this value.
LEARNING_RATE_LIMIT = 10
Rate = Annotated[Real, Field(gt=0, lt=LEARNING_RATE_LIMIT)]


Epochs = Annotated[Real, Field(gt=0, le=10**6)]
Steps = Count


class EarlyStoppingPart(Strict):
    """The conditions that end a run before its last step. Only the dev set is used.

    A whole number in place of these keys sets `patience`.

    patience: training stops after this number of evaluations in a row without an improvement.
    min_delta: smallest improvement, in percentage points of exact match or in per cent of the loss.
    every: optimiser steps between two evaluations.
    max_minutes: time limit of training in minutes. 0: no limit.
    metric: metric that determines the best state.
    cooldown: training continues for this number of evaluations after `patience` has run out, while the learning rate
        falls linearly to zero.
    """

    patience: Count = 5
    min_delta: Annotated[Real, Field(ge=0, le=100)] = 0.5
    every: Count = 100
    max_minutes: Annotated[Real, Field(ge=0)] = 0.0
    metric: StoppingMetric = "exact_match"
    cooldown: Annotated[Whole, Field(ge=0, exclude_if=lambda value: value == 0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _patience_alone(cls, content: Any) -> Any:
        return {"patience": content} if isinstance(content, int) else content


class TrainPart(Strict):
    """The settings of training. The length is a number of steps, or of epochs over the split's training examples.

    `learning_rate`, `steps`, `epochs` and `batch_size` are each one number for all runs, or a mapping with numbers for
    methods (`lora`), arms (`english`), or arms with methods (`english lora`). A method is named by any words of its
    label. An entry for an arm with a method has priority over an entry for an arm. An entry for an arm has priority
    over an entry for a method.

    steps: number of optimiser steps.
    epochs: number of passes over the training examples, in place of `steps`.
    batch_size: number of examples in an optimiser step.
    learning_rate: the highest learning rate.
    warmup: share of the steps during which the learning rate increases.
    schedule: how the learning rate falls after the warmup. With `constant`, it does not fall.
    final: last learning rate divided by the highest.
    weight_decay: weight decay of AdamW.
    max_grad_norm: the gradient is scaled down to this norm if its norm is larger. 0: no limit.
    optimizer: AdamW with 32-bit moments, with 8-bit moments, or with 8-bit moments that can move to the host's memory.
    early_stopping: conditions that end a run before its last step. Default: all steps are trained.
    packing: put several examples of a decoder-only model into one row, which saves padding. Each example attends only
        to its own tokens.
    """

    steps: Steps | dict[str, Steps] | None = None
    epochs: Epochs | dict[str, Epochs] | None = None
    batch_size: BatchSize | dict[str, BatchSize] = 32
    learning_rate: Rate | dict[str, Rate]
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.05
    schedule: Schedule = "linear"
    final: Annotated[Real, Field(ge=0, le=1)] = 0.0
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[Real, Field(ge=0)] = 1.0
    optimizer: Optimizer = "adamw"
    # left out of a saved recipe if not set, so that the saved text of older recipes stays the same
    early_stopping: Annotated[EarlyStoppingPart | None, Field(exclude_if=lambda value: value is None)] = None
    packing: Annotated[bool, Field(exclude_if=lambda value: not value)] = False

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainPart:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


Effect = Annotated[str, Field(max_length=3 * LONGEST_NAME)]


class EffectPart(Strict):
    """An effect as a mapping, with exactly one of `contrast`, `scale`, `retention` and `kind`.

    contrast: two arms or two methods, such as `english-scratch`.
    arms: the arms in which two methods are compared. Default: all arms.
    scale: two arms. Their difference in `study`, the study of a smaller family, is subtracted from their difference in
        this study.
    retention: two arms. Their difference under the method `under` is divided by their difference under the method
        `over` (default: `full`). With `study`, the difference under `over` is read from that study.
    under, over: the two methods of a retention.
    study: folder of a study, or name of a folder next to this study's folder.
    kind: name of a kind of effect from another package (entry points `petransfer.effects`), with the two arms in `of`
        and the kind's own `options`.
    of: the two arms of an effect of another package's kind.
    options: options of another package's kind.
    paired: whether two methods are compared seed by seed. If False, their seeds are two independent groups.
    categories: only the test examples of these categories count: a group of categories, such as `lexical` of COGS, or
        one category. Default: all test examples.
    family: name of a group of effects whose p values are adjusted together (Holm). Default: all effects of a study are
        one group.
    """

    contrast: Name | None = None
    scale: Name | None = None
    retention: Name | None = None
    arms: list[Name] = []
    under: Name | None = None
    over: Name | None = None
    study: Name | None = None
    kind: Annotated[Name | None, Field(exclude_if=lambda value: value is None)] = None
    of: Annotated[Name | None, Field(exclude_if=lambda value: value is None)] = None
    options: Annotated[dict[str, str | Whole | Real], Field(exclude_if=lambda value: not value)] = {}
    paired: Annotated[bool, Field(exclude_if=lambda value: value)] = True
    categories: Annotated[Name, Field(exclude_if=lambda value: not value)] = ""
    family: Annotated[Name, Field(exclude_if=lambda value: not value)] = ""

    @model_validator(mode="after")
    def _one_kind_with_its_keys(self) -> EffectPart:
        given = [kind for kind in ("contrast", "scale", "retention", "kind") if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError("give exactly one of contrast, scale, retention and kind")
        allowed = {
            "contrast": {"arms", "paired", "categories"},
            "scale": {"study"},
            "retention": {"under", "over", "study"},
            "kind": {"of", "options", "study"},
        }[given[0]]
        for key in ("arms", "under", "over", "study", "of", "options", "paired", "categories"):
            if getattr(self, key) != type(self).model_fields[key].default and key not in allowed:
                raise ValueError(f"an effect with {given[0]} has no {key}; its keys are {listed(sorted(allowed))}")
        if self.study:
            _check_study(self.study)
        if self.scale and not self.study:
            raise ValueError("scale needs study: the study of the smaller family")
        if self.kind and not self.of:
            raise ValueError("kind needs of: the two arms of the effect, such as english-scratch")
        if self.retention and not self.under:
            raise ValueError("retention needs under: the method that keeps or loses the effect")
        return self


def _check_study(name: str) -> None:
    """Refuse a text that is neither the name of a study nor a folder with a study."""
    path = expanded(name)
    is_name = len(path.parts) == 1 and "/" not in name
    if is_name and not re.fullmatch(FOLDER_NAME, name):
        raise ValueError(f"'{name:.60}' is not the name of a study")
    # a missing folder is accepted, because its study can be run later
    if not is_name and path.exists() and not (path / "recipe.yaml").is_file():
        raise ValueError(f"{name:.60} is not a study's folder: it has no recipe.yaml")


# Two arms count as equal if they differ by at most this many percentage points, unless a recipe sets another margin.
MARGIN = 5.0
# A difference below this many percentage points is never judged `holds` or `reversed`, unless a recipe sets another
# limit.
SMALLEST_EFFECT = 1.0
# If one of the two compared arms has less exact match on dev than this, in %, that arm has not learnt the task, unless
# a recipe sets another limit.
LEARNT = 90.0


class Recipe(Strict):
    """A study: the grid of arms, methods, splits and seeds, and how each run is trained.

    name: name of the study. Its results go to `results/<name>` by default.
    description: the question that the study answers, as text for the report.
    task: the benchmark or the files of rows.
    family: name of a registered family of checkpoints, or the user's own checkpoints.
    arms: the arms of the family that are trained.
    methods: the training methods. Each arm is trained with each method.
    seeds: the seeds. Each arm and method is trained once per seed.
    more_seeds: further seeds of single arms, such as `{scratch: [4, 5, 6]}`. They are useful for a control that is the
        baseline of several effects. If the names of checkpoints contain `{seed}`, controls with random weights take
        the configuration and the tokenizer of the first seed's checkpoint.
    train: length, learning rate and other settings of training.
    effects: the differences to estimate, such as `english-scratch`.
    data_dir: folder with the benchmark's files, as published by the benchmark's authors.

    The following settings change no run. They only change how effects (differences between two arms or two methods) are
    computed and judged.

    margin: largest difference, in percentage points, at which two arms or two methods count as equal.
    smallest_effect: a smaller difference, in percentage points, is never judged `holds` or `reversed`.
    learnt: smallest exact match on dev, in %, at which an arm or method counts as having learnt the task. Below it, the
        effects of this arm or method get the verdict `not learnt`.
    judge_by: metric that effects are computed on. The default is exact match, or the first of `task.metrics` if
        `task.metrics` is set without `exact_match`.
    """

    name: FolderName
    description: Text = ""
    task: TaskPart
    family: str | FamilyPart = "nano"
    arms: Names
    methods: Parts[MethodPart]
    seeds: Seeds = [0]
    more_seeds: Annotated[dict[Name, Seeds], Field(max_length=LONGEST_LIST, exclude_if=lambda value: not value)] = {}
    train: TrainPart
    effects: Annotated[list[Effect | EffectPart], Field(max_length=LONGEST_LIST)] = []
    # left out of a saved recipe at its default, so that the saved text of older recipes stays the same
    margin: Annotated[Real, Field(gt=0, le=100, exclude_if=lambda value: value == MARGIN)] = MARGIN
    smallest_effect: Annotated[Real, Field(ge=0, le=100, exclude_if=lambda value: value == SMALLEST_EFFECT)] = (
        SMALLEST_EFFECT
    )
    learnt: Annotated[Real, Field(ge=0, le=100, exclude_if=lambda value: value == LEARNT)] = LEARNT
    judge_by: str | None = None
    data_dir: Path | None = None

    @property
    def family_name(self) -> str:
        """The name of the recipe's family of checkpoints."""
        return self.family if isinstance(self.family, str) else self.family.name

    @property
    def judged_by(self) -> str:
        """The metric that effects are computed on."""
        metrics = self.task.metrics
        return self.judge_by or (metrics[0] if metrics and EXACT_MATCH not in metrics else EXACT_MATCH)

    @field_validator("judge_by")
    @classmethod
    def _is_measured(cls, value: str | None, info: ValidationInfo) -> str | None:
        task = info.data.get("task")  # missing if the task itself is not valid
        if task is not None and (task.metrics or task.name != "lines"):  # metrics of the user's files are not known yet
            try:
                check_judge(value, task.metrics)
            except UserError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("data_dir")
    @classmethod
    def _is_a_folder(cls, value: Path | None) -> Path | None:
        if value is not None and value.exists() and not value.is_dir():
            raise ValueError(f"{value} is not a folder")
        return value

    @model_validator(mode="after")
    def _few_enough_runs(self) -> Recipe:
        seeds = len(self.arms) * len(self.seeds) + sum(len(self.more_seeds.get(arm, ())) for arm in self.arms)
        runs = seeds * len(self.methods) * len(self.task.splits or [""])
        if runs > MOST_RUNS:
            raise ValueError(f"the grid has {runs:,} runs; at most {MOST_RUNS:,} are allowed: divide it among recipes")
        return self

    @model_validator(mode="after")
    def _different_seeds(self) -> Recipe:
        for arm, seeds in self.more_seeds.items():
            if twice := [seed for seed in seeds if seed in self.seeds]:
                raise ValueError(f"more_seeds.{arm}: seeds already has {twice[0]}; more_seeds takes only other seeds")
        return self

    @model_validator(mode="after")
    def _different_labels(self) -> Recipe:
        """Refuse two different methods with the same label, because tables and effects could not distinguish them."""
        seen: dict[str, MethodPart] = {}
        for part in self.methods:
            other = seen.setdefault(part.label, part)
            ours, theirs = (vars(method_of(one)) | {"rate_scaling": one.rate_scaling} for one in (part, other))
            differing = [name for name in ours if ours[name] != theirs[name]]
            if differing:
                raise ValueError(
                    f"two methods have one label, {part.label}, and differ only in {', '.join(differing)}, which the "
                    "label does not show; put one of them in a recipe of its own"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _no_fp16(cls, content: Any) -> Any:
        if _asks_for_fp16(content):
            raise ValueError(
                "fp16 overflows in T5-family models and trains to a loss of 0; use bits: 16 (bf16) or bits: 32"
            )
        return content


def check_judge(judge_by: str | None, metrics: Sequence[str]) -> None:
    """Check the metric that effects are computed on: exact match, one of `metrics`, or None."""
    if judge_by is not None and judge_by not in {EXACT_MATCH, *metrics}:
        raise unknown("metric among task.metrics", judge_by, {EXACT_MATCH, *metrics})


def _asks_for_fp16(content: Any) -> bool:
    if isinstance(content, dict):
        named = any(key in {"fp16", "float16"} and value for key, value in content.items())
        return named or any(
            _asks_for_fp16(value) for key, value in content.items() if key not in {"name", "description"}
        )
    if isinstance(content, list):
        return any(map(_asks_for_fp16, content))
    return content in {"fp16", "float16"} if isinstance(content, str) else False
