"""Predict the memory of a study's runs before anything is downloaded."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petransfer.data import load_task
from petransfer.errors import UserError
from petransfer.memory.advice import TURNED_ON, OptionNames, Unpredictable, suggestion
from petransfer.memory.cards import GB, USUAL_CAPABILITY, Card, gigabytes, host_bytes
from petransfer.models.registry import is_embedded
from petransfer.plurals import count
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import CheckpointSpec, MethodSpec, RunSpec, TaskSpec
from petransfer.recipe.stacking import MOST_STACKED, stack_key

if TYPE_CHECKING:
    from petransfer.memory.planner import Fit
    from petransfer.memory.step_memory import StepSpec

# Characters per token in the targets of SCAN and COGS. In prose a T5 token has about 4 characters, so the number of
# tokens of a prose text is overestimated.
CHARACTERS_PER_TOKEN = 1.6
# A vocabulary of at most this many tokens, such as ByT5's, has one token per byte, and so at least one per character.
BYTE_VOCABULARY = 512

# For MOST_STACKED stacked runs of the embedded family on SCAN, COGS or SLOG with batches of up to 32, the planner
# predicts 3 to 5 GB. On a card with at least ROOMY bytes such runs surely fit, so the planner is not called for them.
# This saves importing torch.
ROOMY, USUAL_BATCH, USUAL_CHARACTERS = 8 * GB, 32, 4000

_DRAWN = {"none": "", "embeddings": " (new embeddings)", "body": " (random body)", "all": " (from scratch)"}


@dataclass(frozen=True)
class PredictedRun:
    """The predicted memory of runs with equal memory, for example all seeds of one method.

    Attributes:
        name: Checkpoint, method, bits and size of the stack as text. If several predictions have the same name, the
            folder or the revision of the checkpoint, or the split, is added.
        spec: One of these runs.
        fit: The prediction. None: the prediction failed.
        problem: Why the prediction failed, or ''.
        refused: Whether it failed because the method cannot train this checkpoint.
    """

    name: str
    spec: RunSpec
    fit: Fit | None
    problem: str = ""
    refused: bool = False

    def line(self, options: OptionNames) -> str:
        """Return the prediction as one line of text. `options` are the option names of the called command."""
        if self.fit is None:
            return f"{self.name}: {self.problem}"
        size = gigabytes(self.fit.needed)
        at_once = self.fit.step_spec.batch
        part = "" if at_once == self.fit.batch else f", {count(at_once, 'example')} at once"
        if self.fit.fits:
            again = f", {TURNED_ON}" if self.fit.turned_on else ""
            return f"{self.name}: {size} of {gigabytes(self.fit.card or 0)}{part}{again}"
        if self.fit.lacks_bf16:
            return f"{self.name}: {self.fit}{suggestion(self.fit.advice, options)}"
        what = "this machine's" if self.fit.step_spec.device == "cpu" else "the card's"
        limit = gigabytes(self.fit.card or 0)
        return (
            f"{self.name}: does not fit {what} {limit}: one example of {self.fit.longest_example} needs {size}"
            f"{suggestion(self.fit.advice, options)}"
        )


def predict_memory(
    specs: Sequence[RunSpec],
    limit: int,
    checkpointing: bool = False,
    stacked: Mapping[str, int] | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
    capability: tuple[int, int] | None = None,
) -> list[PredictedRun]:
    """Predict the memory of the runs of a grid. Runs that need equal memory have one prediction.

    Runs of checkpoints shipped with petransfer are left out if they surely fit.

    Args:
        limit: Bytes of the card, or of the machine's memory on a CPU.
        stacked: For each run id, the number of runs in the run's stack. Default: 1.
        capability: Compute capability of the card, such as (8, 6). None: unknown.
    """
    has_bf16 = Card(limit, capability=capability).has_bf16
    found: dict[tuple[object, ...], PredictedRun] = {}
    longest: dict[TaskSpec, tuple[int, int]] = {}
    models: dict[CheckpointSpec, object] = {}
    for spec in specs:
        members = (stacked or {}).get(spec.run_id, 1)
        checkpoint, train, task = spec.checkpoint, spec.train, spec.task
        if task not in longest:
            longest[task] = _longest(spec)
        if checkpoint not in models:
            models[checkpoint] = _model_key(spec)
        lengths = (*longest[task], len(task.prefix))
        key = (models[checkpoint], spec.method, train.batch_size, train.packing, train.optimizer, lengths, members)
        sure = (has_bf16 or spec.method.bits == 32) and _surely_fits(spec, limit, members)
        if key not in found and not sure:
            found[key] = _predicted(spec, limit, checkpointing, members, device, capability)
    return _with_distinct_names(list(found.values()))


def _model_key(spec: RunSpec) -> object:
    """Return a key that is equal for checkpoints whose models need equal memory.

    Local checkpoints in several folders, such as one per seed, have the same key if their configurations are equal.
    """
    checkpoint = spec.checkpoint
    if checkpoint.source is None:
        return checkpoint
    try:
        config, own_head = _architecture(spec)
    except UserError:  # the prediction fails, too
        return checkpoint
    shapes = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    anywhere = replace(checkpoint, weights="", source=None)
    return anywhere, repr(shapes), own_head


def _with_distinct_names(found: Sequence[PredictedRun]) -> list[PredictedRun]:
    """Add the folder, the revision and the split to the names of predictions that have the same name without them."""
    alike: dict[str, list[PredictedRun]] = {}
    for one in found:
        alike.setdefault(one.name, []).append(one)
    words: list[Callable[[RunSpec], str]] = [
        lambda spec: f"folder {spec.checkpoint.source}" if spec.checkpoint.source else "",
        lambda spec: "" if spec.checkpoint.source else f"revision {spec.checkpoint.weights}",
        lambda spec: f"split {spec.task.split}",
    ]
    named = []
    for one in found:
        differing = [word for word in words if len({word(other.spec) for other in alike[one.name]}) > 1]
        named.append(replace(one, name=", ".join([one.name, *filter(None, (word(one.spec) for word in differing))])))
    return named


def _predicted(
    spec: RunSpec,
    limit: int,
    checkpointing: bool,
    members: int,
    device: Literal["cuda", "cpu"],
    capability: tuple[int, int] | None = None,
) -> PredictedRun:
    from petransfer.memory.planner import plan

    name = (
        f"{spec.checkpoint.name}{_DRAWN[spec.checkpoint.reinit]}, {method_title(spec.method)}, {spec.method.bits} bits"
    )
    name += f", {members} stacked" if members > 1 else ""
    try:
        config, own_head = _architecture(spec)
        step_spec = step_spec_of(spec, checkpointing, device, config)
        step_spec = replace(step_spec, members=members, capability=capability or USUAL_CAPABILITY)
        return PredictedRun(name, spec, plan(config, spec.checkpoint, step_spec, own_head, limit))
    except UserError as error:
        return PredictedRun(name, spec, None, str(error), not isinstance(error, Unpredictable))


def refuse_too_large_for_cpu(
    specs: Sequence[RunSpec], options: Callable[[RunSpec], OptionNames], checkpointing: bool = False
) -> list[PredictedRun]:
    """Refuse runs that do not fit this machine's memory with a micro-batch of one example.

    Returns:
        The predictions.

    Args:
        options: Function from a run to the option names with which the called command changes the run's settings.
        checkpointing: Whether gradient checkpointing is on.

    Raises:
        UserError: A run does not fit.
    """
    predicted = predict_memory(specs, host_bytes(), checkpointing, device="cpu")
    for found in predicted:
        if found.fit is not None and not found.fit.fits:
            raise UserError(f"{found.line(options(found.spec))}; --force starts the run anyway")
    return predicted


def refuse_unusable_targets(specs: Iterable[RunSpec]) -> None:
    """Refuse runs whose `targets` or `layers` the method cannot train. Nothing is downloaded.

    Raises:
        UserError: For example, no layer has this name, or texts do not pass through the layer.
    """
    found = {(spec.checkpoint, spec.method): spec for spec in specs if _chooses_layers(spec.method)}
    for spec in found.values():
        if is_embedded(spec.checkpoint.name) or Path(spec.checkpoint.source or spec.checkpoint.name).is_dir():
            predicted = _predicted(spec, host_bytes(), False, 1, "cpu")
            if predicted.refused:
                raise UserError(predicted.problem)


def _chooses_layers(method: MethodSpec) -> bool:
    return method.targets != "all-linear" or bool(method.layers)


def _architecture(spec: RunSpec) -> tuple[Any, bool]:
    """Return the configuration of a run's checkpoint, and whether its output head is untied."""
    from petransfer.models.architecture import configuration
    from petransfer.models.quiet_libraries import silence_libraries

    silence_libraries()
    return configuration(spec.checkpoint)


def needs_checkpointing(spec: RunSpec, card: int) -> bool:
    """Return whether a single run needs gradient checkpointing on a card of `card` bytes and supports it."""
    from petransfer.memory import planner

    if _surely_fits(spec, card, 1):
        return False
    try:
        config, own_head = _architecture(spec)
        step_spec = step_spec_of(spec, False, config=config)
        return planner.needs_checkpointing(config, spec.checkpoint, step_spec, own_head, card)
    except UserError:
        return False


def _surely_fits(spec: RunSpec, card: int, members: int) -> bool:
    """Return whether a run surely fits. Then the planner, which imports torch, is not needed."""
    if not is_embedded(spec.checkpoint.name) or _chooses_layers(spec.method) or sum(_longest(spec)) > USUAL_CHARACTERS:
        return False
    return members == 1 or (card >= ROOMY and members <= MOST_STACKED and spec.train.batch_size <= USUAL_BATCH)


def _longest(spec: RunSpec) -> tuple[int, int]:
    """Return the lengths of the longest training input and target of a run's task, in characters."""
    return load_task(spec.task.name, None, **spec.task.arguments).longest(spec.task.split)


def host_memory(spec: RunSpec, checkpointing: bool = False) -> int:
    """Return the bytes that a run needs on a CPU. 0: no prediction, or a small checkpoint shipped with petransfer."""
    from petransfer.memory.planner import plan
    from petransfer.training.out_of_memory import PACKED_EXAMPLES, PACKED_TOKENS

    if is_embedded(spec.checkpoint.name):
        return 0
    try:
        config, own_head = _architecture(spec)
        step_spec = step_spec_of(spec, checkpointing, "cpu", config)
        # the longest examples, in a micro-batch of a model that skips padding
        fitting = max(1, PACKED_TOKENS // (step_spec.input_length + step_spec.target_length))
        size = min(step_spec.batch, PACKED_EXAMPLES, fitting)
        cut = replace(step_spec, batch=size, accumulates=step_spec.batch > size)
        memory = plan(config, spec.checkpoint, cut, own_head, None).memory
    except UserError:
        return 0
    # reading the weights needs twice the memory of the weights
    return max(memory.peak, 2 * sum(memory.weights.values()))


def largest_stacks(specs: Sequence[RunSpec], card: int) -> dict[str, int]:
    """Return the largest number of runs per stack that fits a card, by run id. 1: no stack."""
    counts: dict[RunSpec, list[RunSpec]] = {}
    found: dict[str, int] = {}
    for spec in specs:
        key = stack_key(spec)
        found[spec.run_id] = 1
        if key is not None:
            counts.setdefault(key, []).append(spec)
    for alike in counts.values():
        widest = max(alike, key=lambda spec: spec.method.rank)
        most = min(len(alike), MOST_STACKED)
        room = most if most == 1 or _surely_fits(widest, card, most) else _room(widest, card, most)
        found |= {spec.run_id: room for spec in alike}
    return found


def _room(spec: RunSpec, card: int, most: int) -> int:
    from petransfer.memory.planner import largest_stack
    from petransfer.training.stacked import refuse_layer_drop

    try:
        config, own_head = _architecture(spec)
        refuse_layer_drop(config)
        return largest_stack(config, spec.checkpoint, step_spec_of(spec, False, config=config), own_head, card, most)
    except UserError:
        return 1


def method_title(method: MethodSpec) -> str:
    """Return the name of a method and its size as text, such as `LoRA of rank 16`."""
    declared = METHODS.lookup(method.name)
    if declared.trains_all_weights:
        return declared.title
    if method.match_parameters:
        size = f" of about {method.match_parameters:,} parameters"
    elif method.rank:
        size = f" of rank {method.rank}"
    else:
        size = f" of {method.virtual_tokens} tokens" if method.virtual_tokens else ""
    return f"{ {'lora': 'LoRA'}.get(method.name, method.name) }{size}"


def check_matched_sizes(specs: Sequence[RunSpec], data_dir: Path | None = None) -> None:
    """Check that each run can train the number of parameters in `match_parameters`."""
    wanted: dict[tuple[object, ...], RunSpec] = {}
    for spec in specs:
        if spec.method.match_parameters:  # the task determines the trained rows of the embeddings
            task = spec.task if spec.method.embeddings in ("new", "used") else None
            wanted.setdefault((spec.checkpoint, spec.method, task), spec)
    if not wanted:
        return
    from petransfer.memory.meta_model import meta_model
    from petransfer.methods import with_size
    from petransfer.models.architecture import configuration

    for spec in wanted.values():
        config, own_head = configuration(spec.checkpoint)
        wide = replace(spec.method, bits=32)
        tokens = trained_tokens_of_run(spec, config, data_dir)
        with_size(meta_model(config, spec.checkpoint.name, wide, own_head, tokens), wide)


def trained_tokens_of_run(spec: RunSpec, config: Any, data_dir: Path | None = None) -> tuple[int, ...]:
    """Return the tokens whose embeddings a run trains with `embeddings: new` or `embeddings: used`.

    All of them occur in the run's training data. With `new`, they were not trained in pretraining.
    """
    from petransfer.data.encoded_examples import encode_part
    from petransfer.methods.shared.trained_tokens import trained_tokens
    from petransfer.models.checkpoint_files import load_tokenizer, new_tokens
    from petransfer.models.loading import tokenizer_and_layout
    from petransfer.models.text_part import vocabulary_size
    from petransfer.training.batches import used_examples

    checkpoint, train, embeddings = spec.checkpoint, spec.train, spec.method.embeddings
    new = new_tokens(checkpoint, vocabulary_size(config)) if embeddings == "new" else ()
    if embeddings != "used" and not (embeddings == "new" and (new or checkpoint.added_tokens)):
        return ()
    rows = load_task(spec.task.name, data_dir, **spec.task.arguments).load(spec.task.split).train
    tokenizer, layout = tokenizer_and_layout(checkpoint, config)
    if checkpoint.added_tokens:
        new = (*new, *range(len(load_tokenizer(replace(checkpoint, added_tokens=()))), len(tokenizer)))
    used = functools.partial(used_examples, len(rows), train.batch_size, train.steps, spec.seed)
    found = encode_part(rows, spec.task.prefix, tokenizer, layout, used=used).token_ids
    return trained_tokens(spec.method, new, found)


def step_spec_of(
    spec: RunSpec, checkpointing: bool, device: Literal["cuda", "cpu"] = "cuda", config: Any = None
) -> StepSpec:
    """Return the training step of a run that needs the most memory: a batch of the longest examples.

    Args:
        config: The checkpoint's configuration. Its vocabulary size shows whether tokens are bytes. None: they are not.
    """
    from petransfer.memory.step_memory import StepSpec
    from petransfer.models.lengths import positions
    from petransfer.models.text_part import text_config

    byte_level = config is not None and (getattr(text_config(config), "vocab_size", 0) or math.inf) <= BYTE_VOCABULARY
    per_token = 1.0 if byte_level else CHARACTERS_PER_TOKEN
    source, target = (int(count / per_token) + 2 for count in _longest(spec))
    source += len(spec.task.prefix) if byte_level else len(spec.task.prefix) // 4
    # rows with more tokens are left out or refused
    most = int(spec.task.source.get("max_length", 0)) or (positions(config) if config is not None else 0)
    source, target = (min(length, most or length) for length in (source, target))
    train = spec.train
    return StepSpec(
        spec.method, train.batch_size, source, target, device, train.optimizer, checkpointing, packing=train.packing
    )
