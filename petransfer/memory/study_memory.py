"""Predict the memory of a study's runs before anything is downloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petransfer.data import load_task
from petransfer.errors import UserError
from petransfer.memory.advice import TURNED_ON, OptionNames, suggestion
from petransfer.memory.cards import GB, gigabytes, host_bytes
from petransfer.models.registry import is_embedded
from petransfer.plurals import count
from petransfer.recipe.run_spec import MethodSpec, RunSpec
from petransfer.recipe.stacking import MOST_STACKED, stack_key

if TYPE_CHECKING:
    from petransfer.memory.planner import Fit
    from petransfer.memory.step_memory import Demand

# Characters per token in the targets of SCAN and COGS. In prose a T5 token has about 4 characters, so the number of
# tokens of a prose text is overestimated.
CHARACTERS_PER_TOKEN = 1.6

# For MOST_STACKED stacked runs of the embedded family on SCAN, COGS or SLOG with batches of up to 32, the planner
# predicts 3 to 5 GB. On a card with at least ROOMY bytes such runs surely fit, so the planner is not called for them.
# This saves importing torch.
ROOMY, USUAL_BATCH, USUAL_CHARACTERS = 8 * GB, 32, 4000

_DRAWN = {"none": "", "embeddings": " (new embeddings)", "body": " (random body)", "all": " (from scratch)"}


@dataclass(frozen=True)
class PredictedRun:
    """The predicted memory of those runs of a grid that need the same memory, for example all seeds of one method.

    Attributes:
        name: Checkpoint, method, bits and size of the stack as text.
        spec: One of these runs.
        fit: The prediction; None if it failed.
        problem: The reason why the prediction failed, or ''.
    """

    name: str
    spec: RunSpec
    fit: Fit | None
    problem: str = ""

    def line(self, options: OptionNames) -> str:
        """Return the prediction as one line of text.

        Args:
            options: The option names of the command that was called.
        """
        if self.fit is None:
            return f"{self.name}: {self.problem}"
        size = gigabytes(self.fit.needed)
        at_once = self.fit.demand.batch
        part = "" if at_once == self.fit.batch else f", {count(at_once, 'example')} at once"
        if self.fit.fits:
            again = f", {TURNED_ON}" if self.fit.turned_on else ""
            return f"{self.name}: {size} of {gigabytes(self.fit.card or 0)}{part}{again}"
        what = "this machine's" if self.fit.demand.device == "cpu" else "the card's"
        limit = gigabytes(self.fit.card or 0)
        return (
            f"{self.name}: {size} with one example, does not fit {what} {limit}{suggestion(self.fit.advice, options)}"
        )


def predict_memory(
    specs: Sequence[RunSpec],
    limit: int,
    checkpointing: bool = False,
    stacked: Mapping[str, int] | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
) -> list[PredictedRun]:
    """Predict the memory of each checkpoint, method and batch of a grid.

    Runs of embedded checkpoints are left out, because they fit every card and machine, unless their examples are very
    long. torch is imported only if other runs remain.

    Args:
        specs: The runs of the grid.
        limit: Bytes of the card, or of the machine's memory on a CPU.
        checkpointing: Whether gradient checkpointing is used: activations are recomputed in the backward pass.
        stacked: For each run id, the number of runs in the stack of this run. Runs without a stack can be left out.
    """
    found: dict[tuple[object, ...], PredictedRun] = {}
    for spec in specs:
        members = (stacked or {}).get(spec.run_id, 1)
        checkpoint = spec.checkpoint
        start = (checkpoint.name, checkpoint.tokenizer, checkpoint.reinit)
        key = (*start, spec.method, spec.train.batch_size, spec.task.name, members)
        if key not in found and not _surely_fits(spec, limit, members):
            found[key] = _predicted(spec, limit, checkpointing, members, device)
    return list(found.values())


def _predicted(
    spec: RunSpec, limit: int, checkpointing: bool, members: int, device: Literal["cuda", "cpu"]
) -> PredictedRun:
    from petransfer.memory.planner import plan

    name = (
        f"{spec.checkpoint.name}{_DRAWN[spec.checkpoint.reinit]}, {method_title(spec.method)}, {spec.method.bits} bits"
    )
    name += f", {members} stacked" if members > 1 else ""
    demand = replace(demand_of(spec, checkpointing, device), members=members)
    try:
        config, own_head = _architecture(spec)
        return PredictedRun(name, spec, plan(config, spec.checkpoint, demand, own_head, limit))
    except UserError as error:
        return PredictedRun(name, spec, None, str(error))


def refuse_too_large_for_cpu(specs: Sequence[RunSpec], options: Callable[[RunSpec], OptionNames]) -> None:
    """Raise UserError for a run that does not fit this machine's memory even with a micro-batch of one example.

    Args:
        options: Takes a run and returns the option names with which the called command changes that run's settings.

    Raises:
        UserError: A run does not fit.
    """
    for found in predict_memory(specs, host_bytes(), device="cpu"):
        if found.fit is not None and not found.fit.fits:
            raise UserError(f"{found.line(options(found.spec))}; --force tries all the same")


def _architecture(spec: RunSpec) -> tuple[Any, bool]:
    """Return the configuration of a run's checkpoint, and whether its output head is not tied to the embeddings.

    Raises:
        UserError: The configuration cannot be found.
    """
    from petransfer.models.architecture import configuration
    from petransfer.models.quiet_libraries import silence_libraries

    silence_libraries()
    return configuration(spec.checkpoint)


def needs_checkpointing(spec: RunSpec, card: int) -> bool:
    """Return whether a run that is not stacked needs gradient checkpointing on a card and supports it.

    The result is also False if no prediction is possible.

    Args:
        spec: The run.
        card: Memory of the card in bytes.
    """
    from petransfer.memory import planner

    if _surely_fits(spec, card, 1):
        return False
    try:
        config, own_head = _architecture(spec)
        return planner.needs_checkpointing(config, spec.checkpoint, demand_of(spec, False), own_head, card)
    except UserError:
        return False


def _surely_fits(spec: RunSpec, card: int, members: int) -> bool:
    """Return whether a run surely fits. If so, the planner, which would import torch, is not needed.

    Args:
        spec: The run.
        card: Memory of the card in bytes.
        members: Number of runs in the stack.
    """
    if not is_embedded(spec.checkpoint.name) or sum(_longest(spec)) > USUAL_CHARACTERS:
        return False
    return members == 1 or (card >= ROOMY and members <= MOST_STACKED and spec.train.batch_size <= USUAL_BATCH)


def _longest(spec: RunSpec) -> tuple[int, int]:
    """Return the lengths of the longest training input and the longest target of a run's task, in characters."""
    return load_task(spec.task.name, None, **spec.task.arguments).longest(spec.task.split)


def host_memory(spec: RunSpec, checkpointing: bool = False) -> int:
    """Return the bytes that a run needs on a CPU.

    This is the memory of its tensors, but at least twice the memory of its weights, because reading the weights needs
    that much. Returns 0 if no prediction is possible, and for embedded checkpoints, which are small.
    """
    from petransfer.memory.planner import plan
    from petransfer.training.out_of_memory import PACKED_EXAMPLES

    if is_embedded(spec.checkpoint.name):
        return 0
    demand = demand_of(spec, checkpointing, "cpu")
    cut = replace(demand, batch=min(demand.batch, PACKED_EXAMPLES), accumulates=demand.batch > PACKED_EXAMPLES)
    try:
        config, own_head = _architecture(spec)
        memory = plan(config, spec.checkpoint, cut, own_head, None).memory
    except UserError:
        return 0
    return max(memory.peak, 2 * sum(memory.weights.values()))


def largest_stacks(specs: Sequence[RunSpec], card: int) -> dict[str, int]:
    """Return, for each run id, how many of the runs that can be stacked with this run fit a card as one stack.

    The number is 1 if the run cannot be stacked, or if no prediction is possible.

    Args:
        specs: The runs.
        card: Memory of the card in bytes.
    """
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
        return largest_stack(config, spec.checkpoint, demand_of(spec, checkpointing=False), own_head, card, most)
    except UserError:
        return 1


def method_title(method: MethodSpec) -> str:
    """Return the name of a method and its size as text, such as `LoRA r16`."""
    if method.name == "full":
        return "all weights"
    size = f" r{method.rank}" if method.rank else f" of {method.virtual_tokens} tokens" if method.virtual_tokens else ""
    size = f" of about {method.match_parameters:,} parameters" if method.match_parameters else size
    return f"{ {'lora': 'LoRA'}.get(method.name, method.name) }{size}"


def check_matched_sizes(specs: Sequence[RunSpec], data_dir: Path | None = None) -> None:
    """Check that each run can have the number of trained parameters that its method's `match_parameters` asks for.

    Raises:
        UserError: A run cannot have this number.
    """
    wanted: dict[tuple[object, ...], RunSpec] = {}
    for spec in specs:
        if spec.method.match_parameters:  # the task determines the trained rows of the embeddings
            task = spec.task if spec.method.embeddings == "new" else None
            wanted.setdefault((spec.checkpoint, spec.method, task), spec)
    if not wanted:
        return
    from petransfer.memory.step_memory import meta_model
    from petransfer.methods import with_size
    from petransfer.models.architecture import configuration

    for spec in wanted.values():
        config, own_head = configuration(spec.checkpoint)
        wide = replace(spec.method, bits=32)
        tokens = trained_new_tokens(spec, config, data_dir)
        with_size(meta_model(config, spec.checkpoint.name, wide, own_head, tokens), wide)


def trained_new_tokens(spec: RunSpec, config: Any, data_dir: Path | None = None) -> tuple[int, ...]:
    """Return the tokens whose embeddings are trained if the method has the setting `embeddings: new`.

    These are the tokens that occur in the run's training data but were not trained in pretraining.

    Args:
        spec: The run.
        config: The configuration of the checkpoint.
        data_dir: A folder with the benchmark's original files; None if there is none.
    """
    from petransfer.data.encoded_examples import encode_part
    from petransfer.models.checkpoint_files import new_tokens
    from petransfer.models.loading import tokenizer_and_layout
    from petransfer.training.batches import used_examples

    new = new_tokens(spec.checkpoint, config.vocab_size) if spec.method.embeddings == "new" else ()
    if not new:
        return ()
    rows = load_task(spec.task.name, data_dir, **spec.task.arguments).load(spec.task.split).train
    tokenizer, layout = tokenizer_and_layout(spec.checkpoint, config)
    train = spec.train
    used = functools.partial(used_examples, len(rows), train.batch_size, train.steps, spec.seed)
    found = encode_part(rows, spec.task.prefix, tokenizer, layout, used=used).token_ids
    return tuple(token for token in new if token in found)


def demand_of(spec: RunSpec, checkpointing: bool, device: Literal["cuda", "cpu"] = "cuda") -> Demand:
    """Return the training step of a run that needs the most memory: a batch of its longest inputs and targets."""
    from petransfer.memory.step_memory import Demand

    source, target = (int(count / CHARACTERS_PER_TOKEN) + 2 for count in _longest(spec))
    source += len(spec.task.prefix) // 4
    train = spec.train
    return Demand(spec.method, train.batch_size, source, target, device, train.optimizer, checkpointing)
