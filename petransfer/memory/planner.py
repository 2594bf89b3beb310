"""Decide whether a training fits a device, find the largest micro-batch, and suggest changes of the settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from petransfer.errors import UserError
from petransfer.memory.advice import FIT_OPTIONS, Advice, Change, Unpredictable, as_options
from petransfer.memory.cards import gigabytes
from petransfer.memory.step_memory import Memory, StepSpec, simulate
from petransfer.plurals import count
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import OPTIMIZERS, CheckpointSpec

# CONTEXT: bytes that a process needs on a card outside PyTorch's allocator, for the CUDA context and its kernels.
# FRAGMENTS: share of the allocator's memory that is lost to fragmentation.
# On an NVIDIA H200, 0.806 to 0.815 GB and 0.6 to 3.4 % were measured (results/bench/gpu-h200/b.json).
CONTEXT, FRAGMENTS = 820 * 10**6, 0.04

# Bytes of a process on a CPU without tensors, after importing torch and transformers.
CPU_PROCESS = 10**9

NO_BF16 = "cannot run on this card with fewer than 32 bits, because the card does not support bf16"

# The largest number of tokens in a simulated step. Larger batches are cut into micro-batches of at most this size.
MOST_TOKENS = 2**22


@dataclass(frozen=True)
class Fit:
    """The memory that a training needs, and whether it fits a device.

    A training that computes in bf16 does not fit a card without bf16, whatever the card's memory is.

    Attributes:
        batch: Examples in an optimiser step.
        step_spec: The training step with the largest micro-batch that fits. If no micro-batch fits: with one example.
        memory: Bytes of this step, part by part.
        card: Memory of the device in bytes. None: no device was given.
        fits: Whether at least a micro-batch of one example fits.
        turned_on: Whether the training fits only with gradient checkpointing, which training turns on automatically.
        advice: Changes of the settings. Each entry alone would make the training fit. Empty if the training fits.
    """

    batch: int
    step_spec: StepSpec
    memory: Memory
    card: int | None
    fits: bool
    turned_on: bool = False
    advice: tuple[Advice, ...] = ()

    @property
    def needed(self) -> int:
        """Memory of the device that the training needs, in bytes."""
        return on_device(self.memory.peak, self.step_spec)

    @property
    def micro_batch(self) -> int:
        """Examples in a forward and backward pass."""
        return self.step_spec.batch

    @property
    def lacks_bf16(self) -> bool:
        """Whether the training computes in bf16 and the card does not support it. Only 32 bits work on such a card."""
        return self.step_spec.lacks_bf16

    @property
    def longest_example(self) -> str:
        """The tokens of the longest example in words, such as `10 input tokens and 5 target tokens`."""
        lengths = self.step_spec.input_length, self.step_spec.target_length
        return " and ".join(count(size, f"{end} token") for size, end in zip(lengths, ("input", "target"), strict=True))

    @property
    def suggestions(self) -> list[str]:
        """Alternative options of `petransfer fit` with which the training would fit."""
        return as_options(self.advice, FIT_OPTIONS)

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain JSON values, for `petransfer fit --json`."""
        return {
            "memory": asdict(self.memory) | {"peak": self.memory.peak, "on_card": self.needed},
            "card": self.card,
            "fits": self.fits,
            "lacks_bf16": self.lacks_bf16,
            "micro_batch": self.step_spec.batch,
            "stack": self.step_spec.members,
            "checkpointing": self.step_spec.checkpointing,
            "packing": self.step_spec.packing,
            "advice": self.suggestions,
        }

    def __repr__(self) -> str:
        return f"<Fit: {self}; {count(self.memory.trained_parameters, 'trained parameter')}>"

    def __str__(self) -> str:
        of = f" of {gigabytes(self.card)}" if self.card else ""
        if self.lacks_bf16:
            return NO_BF16
        if not self.fits:
            return f"does not fit: one example needs {gigabytes(self.needed)}{of}"
        return f"{self.micro_batch} of {count(self.batch, 'example')} at once: {gigabytes(self.needed)}{of}"


def on_card(peak: int) -> int:
    """Return the bytes that a process needs on a card for tensors of `peak` bytes.

    The CUDA context and the fragmentation of the memory are added.
    """
    return int(peak / (1 - FRAGMENTS)) + CONTEXT


def on_device(peak: int, step_spec: StepSpec) -> int:
    """Return the bytes that a process needs on the device of `step_spec` for tensors of `peak` bytes."""
    return on_card(peak) if step_spec.device == "cuda" else peak + CPU_PROCESS


def plan(
    config: Any,
    checkpoint: CheckpointSpec,
    step_spec: StepSpec,
    own_head: bool,
    card: int | None,
    new_tokens: tuple[int, ...] = (),
) -> Fit:
    """Predict the memory of a training, and find the largest micro-batch that fits.

    Args:
        config: Configuration of the checkpoint.
        step_spec: The training, with the batch of an optimiser step. No larger micro-batch is tried.
        own_head: Whether the output head is untied.
        card: Memory of the device in bytes. None: no limit.
        new_tokens: Tokens whose embeddings are trained with `embeddings: new` or `embeddings: used`.

    Raises:
        UserError: The architecture cannot be trained with these settings.
    """
    found = _plan_by_memory(config, checkpoint, step_spec, own_head, card, new_tokens)
    if not step_spec.lacks_bf16:
        return found
    to_32 = Change("bits", 32)
    at_32 = _plan_by_memory(config, checkpoint, _changed(step_spec, (to_32,)), own_head, card, new_tokens)
    more: tuple[Advice, ...] = ((),) if at_32.fits else at_32.advice
    return replace(found, fits=False, turned_on=False, advice=tuple((to_32, *advice) for advice in more))


def _plan_by_memory(
    config: Any,
    checkpoint: CheckpointSpec,
    step_spec: StepSpec,
    own_head: bool,
    card: int | None,
    new_tokens: tuple[int, ...],
) -> Fit:
    """Plan a training by its memory alone: `plan` without the check for bf16."""

    @functools.cache
    def of(changed: StepSpec) -> Memory:
        return simulate(config, checkpoint.name, changed, own_head, new_tokens)

    whole = step_spec.batch
    most = max(1, MOST_TOKENS // ((step_spec.input_length + step_spec.target_length) * step_spec.members))
    if whole > most:  # a simulated step takes longer the more tokens it has
        step_spec = replace(step_spec, batch=most, accumulates=True)
    memory = of(step_spec)
    if card is None or on_device(memory.peak, step_spec) <= card:
        return Fit(whole, step_spec, memory, card, True)
    largest = _largest(of, step_spec, memory, card)
    tried, turned_on = step_spec, False
    if not largest and (again := _with_checkpointing(of, step_spec)) is not None:
        tried, memory = again
        largest = step_spec.batch if on_device(memory.peak, step_spec) <= card else _largest(of, tried, memory, card)
        turned_on = largest > 0
    taken = replace(tried, batch=max(1, largest), accumulates=largest < whole and whole > 1)
    advice = () if largest else tuple(_advice(lambda changed: _fits(of, changed, card), taken))
    if not largest:
        taken = replace(taken, checkpointing=step_spec.checkpointing)
    return Fit(whole, taken, of(taken), card, largest > 0, turned_on, advice)


def _fits(of: Callable[[StepSpec], Memory], step_spec: StepSpec, card: int) -> bool:
    """Return whether a training step fits the device, with gradient checkpointing if needed."""
    try:
        if on_device(of(step_spec).peak, step_spec) <= card:
            return True
        again = _with_checkpointing(of, step_spec)
    except UserError:  # not trainable with these settings
        return False
    return again is not None and on_card(again[1].peak) <= card


def needs_checkpointing(
    config: Any, checkpoint: CheckpointSpec, step_spec: StepSpec, own_head: bool, card: int
) -> bool:
    """Return whether one example fits the card only with gradient checkpointing.

    False if training cannot use gradient checkpointing.

    Args:
        step_spec: The training, with the batch of an optimiser step.
    """

    def of(changed: StepSpec) -> Memory:
        return simulate(config, checkpoint.name, changed, own_head)

    one = replace(step_spec, batch=1, accumulates=step_spec.batch > 1)
    # whether one example fits with gradient checkpointing is not checked
    try:
        return on_card(of(one).peak) > card and _with_checkpointing(of, one) is not None
    except Unpredictable:
        return False


def _with_checkpointing(of: Callable[[StepSpec], Memory], step_spec: StepSpec) -> tuple[StepSpec, Memory] | None:
    """Return a training step with gradient checkpointing, and its memory. None if not possible."""
    if step_spec.checkpointing or step_spec.device == "cpu" or step_spec.members > 1:
        return None
    again = replace(step_spec, checkpointing=True)
    try:
        return again, of(again)
    except UserError:  # prefix tuning and some architectures do not support it
        return None


def largest_stack(
    config: Any, checkpoint: CheckpointSpec, step_spec: StepSpec, own_head: bool, card: int, most: int
) -> int:
    """Return the largest number of runs that fit a card as one stack. At least 1, at most `most`.

    Each run has its whole batch. `step_spec` is one run of the stack.
    """

    def peak(members: int) -> int:
        return simulate(config, checkpoint.name, replace(step_spec, members=members), own_head).peak

    if most < 2 or step_spec.checkpointing or on_card(two := peak(2)) > card:
        return 1
    slope = max(1, two - peak(1))
    count = min(most, 2 + int(((card - CONTEXT) * (1 - FRAGMENTS) - two) / slope))
    while count > 2 and on_card(peak(count)) > card:
        count -= 1
    while count < most and on_card(peak(count + 1)) <= card:
        count += 1
    return count


def _largest(of: Callable[[StepSpec], Memory], step_spec: StepSpec, memory: Memory, card: int) -> int:
    """Return the largest micro-batch, smaller than the whole batch, that fits. 0: none fits."""
    if step_spec.batch == 1:
        return 0
    part = replace(step_spec, accumulates=True)

    def needed(count: int) -> int:
        return on_device(of(replace(part, batch=count)).peak, step_spec)

    one = needed(1)
    if one > card:
        return 0
    # memory is almost linear in the micro-batch, so the search starts from a linear interpolation
    slope = (on_device(memory.peak, step_spec) - one) / (step_spec.batch - 1)
    guess, too_many = step_spec.batch, step_spec.batch
    while guess > 1:
        guess = max(1, min(guess - 1, 1 + int((card - one) / slope)))
        found = needed(guess)
        if found <= card:
            break
        slope, too_many = (found - one) / (guess - 1), guess
    while guess + 1 < too_many and needed(guess + 1) <= card:
        guess += 1
    return guess


def _advice(fits: Callable[[StepSpec], bool], step_spec: StepSpec) -> list[Advice]:
    """Return changes of the settings with which one example fits."""
    changes = _changes(fits, step_spec)
    found = [advice for advice in changes if fits(_changed(step_spec, advice))]
    if found:
        enough = [advice for advice in found if not any(set(other) < set(advice) for other in found)]
        return [advice for advice in enough if advice != PAGED or EIGHT_BIT not in enough]
    # No single change is enough, so all changes are tried together. The last change of each key needs the least memory.
    last = {change.key: change for advice in changes for change in advice}
    together = tuple(last.values())
    return [together] if together and fits(_changed(step_spec, together)) else []


EIGHT_BIT: Advice = (Change("optimizer", "adamw-8bit"),)
PAGED: Advice = (Change("optimizer", "paged-adamw-8bit"),)


def _changes(fits: Callable[[StepSpec], bool], step_spec: StepSpec) -> list[Advice]:
    """Return the changes that could reduce the memory, sorted by their cost for the user."""
    found: list[Advice] = []
    fewer = step_spec.members // 2
    if fewer:
        while fewer > 1 and not fits(replace(step_spec, members=fewer)):
            fewer //= 2
        found.append((Change("stack", fewer),))
    elif not step_spec.checkpointing and step_spec.device == "cpu":  # on a card, `plan` has already tried this
        found.append((Change("checkpointing"),))
    smaller = OPTIMIZERS[OPTIMIZERS.index(step_spec.optimizer) + 1 :]
    found += [(Change("optimizer", name),) for name in smaller]
    method = step_spec.method
    whole = METHODS.lookup(method.name).trains_all_weights
    if whole:
        found.append((Change("method", "lora"),))
    for bits in (16, 8, 4) if step_spec.has_bf16 else ():
        if bits < method.bits and (whole or bits not in METHODS.lookup(method.name).unsupported_bits):
            found.append((*((Change("method", "lora"),) if whole else ()), Change("bits", bits)))
    return found


def _changed(step_spec: StepSpec, advice: Advice) -> StepSpec:
    for change in advice:
        if change.key == "checkpointing":
            step_spec = replace(step_spec, checkpointing=True)
        elif change.key == "stack":
            step_spec = replace(step_spec, members=change.value)  # type: ignore[arg-type]
        elif change.key == "optimizer":
            step_spec = replace(step_spec, optimizer=change.value)  # type: ignore[arg-type]
        elif change.key == "bits":
            step_spec = replace(step_spec, method=replace(step_spec.method, bits=change.value))  # type: ignore[arg-type]
        else:
            step_spec = replace(step_spec, method=replace(step_spec.method, name="lora", rank=16, alpha=32.0))
    return step_spec
