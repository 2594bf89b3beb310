"""Does it fit, with how many examples at once, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from petransfer.fit.simulate import Demand, Memory, simulate
from petransfer.recipe.spec import Bits, CheckpointSpec

# What a process holds on a card beside PyTorch's tensors (context, cuBLAS and cuDNN workspaces), and the share of its
# memory that PyTorch's allocator cannot use for being in pieces. Assumed, not measured, on the safe side.
CONTEXT, FRAGMENTS = 600 * 2**20, 0.04


@dataclass(frozen=True)
class Fit:
    """A demand and what it takes.

    batch: examples an optimiser step. demand, memory: of a forward pass, with as many of them as fit the card, or one
    where none does. card: bytes, None where none was named. fits: whether at least one does.
    """

    batch: int

    demand: Demand
    memory: Memory
    card: int | None
    fits: bool
    advice: tuple[str, ...] = ()

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
    new_pieces: tuple[int, ...] = (),
) -> Fit:
    """What the demand takes, and with a card the largest micro-batch on it, up to the demand's batch.

    new_pieces: those whose rows `embeddings: new` trains.

    Raises:
        UserError: the architecture cannot be trained so.
    """

    def of(changed: Demand) -> Memory:
        return simulate(config, checkpoint.name, changed, own_head, new_pieces)

    memory = of(demand)
    if card is None or on_card(memory.peak) <= card:
        return Fit(demand.batch, demand, memory, card, True)
    largest = _largest(of, demand, memory, card)
    taken = replace(demand, batch=max(1, largest), accumulates=demand.batch > 1)
    advice = () if largest else tuple(_advice(of, demand, card))
    return Fit(demand.batch, taken, of(taken), card, largest > 0, advice)


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
    """Memory rises evenly with the micro-batch: guess from two points, then look."""
    if demand.batch == 1:
        return 0
    cut = replace(demand, accumulates=True)
    one = of(replace(cut, batch=1)).peak
    if on_card(one) > card:
        return 0
    slope = (memory.peak - one) / (demand.batch - 1)
    room = (card - CONTEXT) * (1 - FRAGMENTS) - one
    guess = max(1, min(demand.batch - 1, 1 + int(room / slope)))
    while guess > 1 and on_card(of(replace(cut, batch=guess)).peak) > card:
        guess -= 1
    return guess


def _advice(of: Callable[[Demand], Memory], demand: Demand, card: int) -> list[str]:
    """Changes under which one example fits, each tried: the least first, then together."""
    one = replace(demand, batch=1, accumulates=demand.batch > 1)
    changes: dict[str, Callable[[Demand], Demand]] = {}
    fewer = demand.members // 2
    if fewer:
        while fewer > 1 and on_card(of(replace(one, members=fewer)).peak) > card:
            fewer //= 2
        changes[f"--stack {fewer}"] = lambda it: replace(it, members=fewer)
    elif not demand.checkpointing:
        changes["--checkpointing"] = lambda it: replace(it, checkpointing=True)
    if demand.optimizer == "adamw":
        changes["--optimizer adamw-8bit"] = lambda it: replace(it, optimizer="adamw-8bit")
    if demand.method.name == "full":
        lora = replace(demand.method, name="lora", rank=16, alpha=32.0, bits=16)
        changes["--method lora"] = lambda it: replace(it, method=lora)
    narrower: tuple[Bits, ...] = (8, 4)
    for bits in narrower:
        if bits < demand.method.bits:
            changes[f"--bits {bits}"] = _with_bits(bits)
    found = [name for name, change in changes.items() if on_card(of(change(one)).peak) <= card]
    if found:
        return found
    names: list[str] = []
    together = one
    for name, change in changes.items():
        if name != "--bits 8":
            names, together = [*names, name], change(together)
    if names and on_card(of(together).peak) <= card:
        return [" ".join(names)]
    return []


def _with_bits(bits: Bits) -> Callable[[Demand], Demand]:
    def change(demand: Demand) -> Demand:
        method = replace(demand.method, bits=bits)
        if method.name == "full":
            method = replace(method, name="lora", rank=16, alpha=32.0)
        return replace(demand, method=method)

    return change
