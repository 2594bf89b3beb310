"""Does it fit, with how many examples at once, and what would make it fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from petransfer.errors import UserError
from petransfer.memory.advice import Advice, Change
from petransfer.memory.simulation import Demand, Memory, simulate
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import CheckpointSpec, Optimizer

# What a process holds on a card beside PyTorch's tensors (context, cuBLAS and cuDNN workspaces), and the share of its
# memory that PyTorch's allocator cannot use for being in pieces. Assumed, not measured, on the safe side.
CONTEXT, FRAGMENTS = 600 * 2**20, 0.04


@dataclass(frozen=True)
class Fit:
    """A demand and what it takes.

    batch: examples an optimiser step. demand, memory: of a forward pass, with as many of them as fit the card, or one
    where none does. card: bytes, None where none was named. fits: whether at least one does. turned_on: it does only
    with checkpointing, which was not asked for and which `run` turns on by itself. advice: changes, any of which helps.
    """

    batch: int
    demand: Demand
    memory: Memory
    card: int | None
    fits: bool
    turned_on: bool = False
    advice: tuple[Advice, ...] = ()

    @property
    def needed(self) -> int:
        """Bytes of the card that it takes."""
        return on_card(self.memory.peak)


def on_card(peak: int) -> int:
    """Bytes of a card for so many bytes of tensors."""
    return int(peak / (1 - FRAGMENTS)) + CONTEXT


def plan(
    config: Any,
    checkpoint: CheckpointSpec,
    demand: Demand,
    own_head: bool,
    card: int | None,
    new_tokens: tuple[int, ...] = (),
) -> Fit:
    """What the demand takes, and with a card the largest micro-batch on it, up to the demand's batch.

    new_tokens: those whose rows `embeddings: new` trains.

    Raises:
        UserError: the architecture cannot be trained so.
    """

    @functools.cache
    def of(changed: Demand) -> Memory:
        return simulate(config, checkpoint.name, changed, own_head, new_tokens)

    memory = of(demand)
    if card is None or on_card(memory.peak) <= card:
        return Fit(demand.batch, demand, memory, card, True)
    largest = _largest(of, demand, memory, card)
    tried, turned_on = demand, False
    if not largest and (again := _with_checkpointing(of, demand)) is not None:
        tried, memory = again
        largest = demand.batch if on_card(memory.peak) <= card else _largest(of, tried, memory, card)
        turned_on = largest > 0
    taken = replace(tried, batch=max(1, largest), accumulates=largest < demand.batch and demand.batch > 1)
    advice = () if largest else tuple(_advice(lambda changed: _fits(of, changed, card), taken))
    if not largest:
        taken = replace(taken, checkpointing=demand.checkpointing)
    return Fit(demand.batch, taken, of(taken), card, largest > 0, turned_on, advice)


def _fits(of: Callable[[Demand], Memory], demand: Demand, card: int) -> bool:
    """As it is, or with the checkpointing that `run` turns on."""
    try:
        if on_card(of(demand).peak) <= card:
            return True
        again = _with_checkpointing(of, demand)
    except UserError:  # nor can it be trained so
        return False
    return again is not None and on_card(again[1].peak) <= card


def needs_checkpointing(config: Any, checkpoint: CheckpointSpec, demand: Demand, own_head: bool, card: int) -> bool:
    """Whether one example fits a card at most with its activations computed again, and they can be.

    Raises:
        UserError: the architecture cannot be trained so.
    """

    def of(changed: Demand) -> Memory:
        return simulate(config, checkpoint.name, changed, own_head)

    one = replace(demand, batch=1, accumulates=demand.batch > 1)
    return on_card(of(one).peak) > card and _with_checkpointing(of, one) is not None


def _with_checkpointing(of: Callable[[Demand], Memory], demand: Demand) -> tuple[Demand, Memory] | None:
    """The demand with its activations computed again, as `run` does on a card by itself; None where that cannot be."""
    if demand.checkpointing or demand.device == "cpu" or demand.members > 1:
        return None
    again = replace(demand, checkpointing=True)
    try:
        return again, of(again)
    except UserError:  # neither prefix tuning nor every architecture can
        return None


def largest_stack(config: Any, checkpoint: CheckpointSpec, demand: Demand, own_head: bool, card: int, most: int) -> int:
    """How many runs fit a card as one stack, each with its whole batch; 1 where not even two do.

    Raises:
        UserError: the architecture cannot be trained so.
    """

    def peak(members: int) -> int:
        return simulate(config, checkpoint.name, replace(demand, members=members), own_head).peak

    if most < 2 or demand.checkpointing or on_card(two := peak(2)) > card:
        return 1
    slope = max(1, two - peak(1))
    count = min(most, 2 + int(((card - CONTEXT) * (1 - FRAGMENTS) - two) / slope))
    while count > 2 and on_card(peak(count)) > card:
        count -= 1
    while count < most and on_card(peak(count + 1)) <= card:
        count += 1
    return count


def _largest(of: Callable[[Demand], Memory], demand: Demand, memory: Memory, card: int) -> int:
    """Memory rises almost evenly with the micro-batch: guess from two points, look, and guess again from there."""
    if demand.batch == 1:
        return 0
    cut = replace(demand, accumulates=True)
    one = of(replace(cut, batch=1)).peak
    if on_card(one) > card:
        return 0
    slope = (memory.peak - one) / (demand.batch - 1)
    room = (card - CONTEXT) * (1 - FRAGMENTS) - one
    guess, too_many = demand.batch, demand.batch
    while guess > 1:
        guess = max(1, min(guess - 1, 1 + int(room / slope)))
        peak = of(replace(cut, batch=guess)).peak
        if on_card(peak) <= card:
            break
        slope, too_many = (peak - one) / (guess - 1), guess
    while guess + 1 < too_many and on_card(of(replace(cut, batch=guess + 1)).peak) <= card:
        guess += 1
    return guess


def _advice(fits: Callable[[Demand], bool], demand: Demand) -> list[Advice]:
    """Changes under which one example fits, each tried: the least first, then together. demand: of one example."""
    changes = _changes(fits, demand)
    found = [advice for advice in changes if fits(_changed(demand, advice))]
    if found:
        enough = [advice for advice in found if not any(set(other) < set(advice) for other in found)]
        return [advice for advice in enough if advice != PAGED or EIGHT_BIT not in enough]
    last = {change.key: change for advice in changes for change in advice}  # of each key what asks for least
    together = tuple(last.values())
    return [together] if together and fits(_changed(demand, together)) else []


EIGHT_BIT: Advice = (Change("optimizer", "adamw-8bit"),)
PAGED: Advice = (Change("optimizer", "paged-adamw-8bit"),)


def _changes(fits: Callable[[Demand], bool], demand: Demand) -> list[Advice]:
    found: list[Advice] = []
    fewer = demand.members // 2
    if fewer:
        while fewer > 1 and not fits(replace(demand, members=fewer)):
            fewer //= 2
        found.append((Change("stack", fewer),))
    elif not demand.checkpointing and demand.device == "cpu":  # on a card it was tried before
        found.append((Change("checkpointing"),))
    optimizers: tuple[Optimizer, ...] = ("adamw", "adamw-8bit", "paged-adamw-8bit")
    found += [(Change("optimizer", name),) for name in optimizers[optimizers.index(demand.optimizer) + 1 :]]
    method = demand.method
    whole = method.name == "full"
    if whole:
        found.append((Change("method", "lora"),))
    for bits in (16, 8, 4):
        if bits < method.bits and (whole or bits not in METHODS.lookup(method.name).unsupported_bits):
            found.append((*((Change("method", "lora"),) if whole else ()), Change("bits", bits)))
    return found


def _changed(demand: Demand, advice: Advice) -> Demand:
    for change in advice:
        if change.key == "checkpointing":
            demand = replace(demand, checkpointing=True)
        elif change.key == "stack":
            demand = replace(demand, members=change.value)  # type: ignore[arg-type]
        elif change.key == "optimizer":
            demand = replace(demand, optimizer=change.value)  # type: ignore[arg-type]
        elif change.key == "bits":
            demand = replace(demand, method=replace(demand.method, bits=change.value))  # type: ignore[arg-type]
        else:
            demand = replace(demand, method=replace(demand.method, name="lora", rank=16, alpha=32.0))
    return demand
