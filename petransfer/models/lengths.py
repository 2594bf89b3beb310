"""How long inputs and targets may be: what is longer than a model's positions is refused, never cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from petransfer.data.encoding import Encoded
from petransfer.data.task import Example
from petransfer.errors import UserError

# Positions are relative, however many there are; whatever their configuration says of them was for pretraining.
RELATIVE = frozenset({"t5", "mt5", "umt5", "longt5", "bloom"})
# Generation is given so many pieces more than the longest target.
ROOM = 8


def positions(config: Any) -> int | None:
    """How many pieces the model can tell the places of; None where there is no such limit."""
    if config.model_type in RELATIVE:
        return None
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found else None


@dataclass(frozen=True)
class VirtualTokens:
    """VirtualTokens tokens that take positions of a model: before the input, and before what a decoder says."""

    input: int = 0
    target: int = 0


def length_check(
    config: Any, name: str, most: int, virtual: VirtualTokens | None = None
) -> Callable[[Callable[[int], str], Sequence[Example], Sequence[Encoded]], None]:
    """A function that refuses examples that are too long; it is told what errors call one, by its index.

    name: the checkpoint's. most: what the user allows an input and a target, in pieces; 0 for anything. virtual: the
    tokens of prompt and prefix tuning.
    """
    limit, together, virtual = positions(config), not config.is_encoder_decoder, virtual or VirtualTokens()

    def check(row_name: Callable[[int], str], examples: Sequence[Example], encoded: Sequence[Encoded]) -> None:
        for example, row in zip(examples, encoded, strict=True):
            source, target = len(row.input_ids), len(row.target_ids)
            if most and max(source, target) > most:
                what, size = ("input", source) if source > most else ("target", target)
                where = row_name(example.index)
                raise UserError(f"the {what} of {where} takes {size:,} pieces, more than max_length {most:,}; {_CURE}")
            sides = [("input", source, virtual.input), ("target", target, virtual.target + ROOM)]
            if together:
                sides = [("input and target", source + target, virtual.input + virtual.target + ROOM)]
            for what, taken, kept in sides:
                if limit and taken + kept > limit:
                    raise UserError(
                        f"the {what} of {row_name(example.index)} takes {taken:,} pieces, and {name} has {limit:,} "
                        f"positions{_kept(virtual)}; shorten it, leave it out, or take a T5, which has no such limit"
                    )

    return check


def _kept(virtual: VirtualTokens) -> str:
    tokens = virtual.input + virtual.target
    return f" ({ROOM} of them kept for generation{f', {tokens:,} for virtual tokens' if tokens else ''})"


_CURE = "raise it, or shorten the row or leave it out: nothing is cut"
