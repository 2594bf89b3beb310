"""Check the lengths of inputs and targets. Too long examples are refused, never cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from petransfer.data.bad_rows import BadRow
from petransfer.data.encoding import Encoded
from petransfer.errors import UserError
from petransfer.models.rotary_positions import scaled_positions
from petransfer.models.text_part import text_config

# These architectures have relative positions without a limit, whatever their configurations contain.
RELATIVE = frozenset({"t5", "mt5", "umt5", "longt5", "bloom"})
# The number of positions that are reserved, so that a generated text can be a little longer than the longest target.
RESERVED_POSITIONS = 8


def positions(config: Any, of_encoder: bool = False) -> int | None:
    """Return the largest number of tokens that a model has positions for. None: no limit.

    Args:
        of_encoder: Return the number of the encoder, which is larger than the decoder's in LED.
    """
    if config.model_type in RELATIVE:
        return None
    own = "max_encoder_position_embeddings" if of_encoder else "max_decoder_position_embeddings"
    text = text_config(config)
    found = getattr(text, own, None) or scaled_positions(config) or getattr(text, "max_seq_len", None)  # the last: MPT
    return int(found) if found else None


@dataclass(frozen=True)
class VirtualTokens:
    """Numbers of virtual tokens before the input (`input`) and before the target (`target`)."""

    input: int = 0
    target: int = 0


def length_check(
    config: Any, name: str, most: int, virtual: VirtualTokens | None = None, vocabulary: int = 0
) -> Callable[[Encoded], BadRow | None]:
    """Return a function that returns the problem of an unusable example, and None for a usable one.

    An example is unusable if it is too long, or if one of its tokens has no row in the embeddings.

    Args:
        most: Largest number of tokens of an input or a target that the user allows. 0: no limit.
        virtual: Numbers of virtual tokens in prompt and prefix tuning, which also need positions. None: no such tokens.
        vocabulary: Number of rows of the model's embeddings, which every token id must have. 0: not checked.
    """
    together, virtual = not config.is_encoder_decoder, virtual or VirtualTokens()
    refuse_virtual_tokens(config, name, virtual)
    limits = [positions(config, of_encoder=True), positions(config)]

    def check(row: Encoded) -> BadRow | None:
        source, target = len(row.input_ids), len(row.target_ids)
        highest = max((*row.input_ids, *row.target_ids))
        if vocabulary and highest >= vocabulary:
            return BadRow(f"a token of the tokenizer has no row in the embeddings of {name}", f"token {highest:,}")
        if most and max(source, target) > most:
            what, size = ("input", source) if source > most else ("target", target)
            return BadRow(f"the {what} has more tokens than --max-length {most:,}", f"{size:,} tokens")
        sides = [("input has", source, 0, virtual.input), ("target has", target, RESERVED_POSITIONS, virtual.target)]
        if together:
            sides = [("input and target have", source + target, RESERVED_POSITIONS, virtual.input + virtual.target)]
        for (what, taken, kept, before), limit in zip(sides, limits[-len(sides) :], strict=True):
            if limit and taken + kept + before > limit:
                detail = f"{taken:,} of {limit:,}{_kept(kept, before)}"
                return BadRow(f"the {what} more tokens than {name} accepts", detail)
        return None

    return check


def refuse_virtual_tokens(config: Any, name: str, virtual: VirtualTokens) -> None:
    """Raise UserError if virtual tokens leave no position for the shortest example."""
    sides = [
        (virtual.input, positions(config, of_encoder=True), 1),
        (virtual.target, positions(config), 1 + RESERVED_POSITIONS),
    ]
    if not config.is_encoder_decoder:
        sides = [(virtual.input + virtual.target, positions(config), 2 + RESERVED_POSITIONS)]
    for taken, limit, needed in sides:
        if taken and limit and taken + needed > limit:
            raise UserError(
                f"{taken:,} virtual tokens are too many: {name} has {limit:,} positions, and an example needs at least "
                f"{needed}; use fewer virtual tokens"
            )


def _kept(room: int, virtual: int) -> str:
    """Return how many positions are kept for generation (`room`) and for virtual tokens."""
    parts = [f"{room} are kept for generation"] if room else []
    parts += [f"{virtual:,} {'' if parts else 'are kept '}for virtual tokens"] if virtual else []
    return f", of which {' and '.join(parts)}" if parts else ""
