"""`petransfer.fit`: predict the memory of a training before anything is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from petransfer.errors import UserError, unknown
from petransfer.memory.cards import GB, LARGEST, SMALLEST, USUAL_CAPABILITY, Card, parse_card
from petransfer.models.registry import checkpoint_spec
from petransfer.models.thread_turns import import_transformers
from petransfer.python_arguments import (
    checked_bool,
    checked_choice,
    checked_integer,
    checked_name,
    checked_path,
    is_whole,
    shown_value,
)
from petransfer.recipe.method_part import MethodPart, method_of
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import OPTIMIZERS, CheckpointSpec, MethodSpec, Optimizer
from petransfer.recipe.values import LARGEST_BATCH

if TYPE_CHECKING:
    from petransfer.memory.planner import Fit
    from petransfer.memory.step_memory import StepSpec

DEFAULT_SIZES = {"rank": 16, "virtual_tokens": 20}
# The largest number of runs in a stack, and of tokens in an input or a target.
LARGEST_STACK, LONGEST = 1024, 2**20


def fit(
    checkpoint: str | Path,
    *,
    bits: int = 16,
    method: str = "lora",
    card: str | int | Card | None = None,
    rank: int | None = None,
    virtual_tokens: int | None = None,
    match_parameters: int | None = None,
    batch_size: int = 32,
    lengths: tuple[int, int] = (64, 128),
    optimizer: Optimizer = "adamw",
    stack: int = 1,
    gradient_checkpointing: bool = False,
    packing: bool = False,
    device: Literal["cuda", "cpu"] = "cuda",
) -> Fit:
    """Predict how much memory fine-tuning needs, and find the largest micro-batch that fits a card.

    Weights are never loaded. For checkpoints on the hub that are not in petransfer's registry, the configuration is
    downloaded.

    Args:
        checkpoint: Hub id, folder, or checkpoint shipped with petransfer, such as `nano/english`.
        bits: Bits per weight of the base model: 32, 16, 8 or 4.
        method: Name of the method, such as `lora` or `full`.
        card: The card as a name (`"RTX 3060"`), or its memory as a size (`"12GB"`) or bytes. Only a name tells whether
            the card has bf16, without which only 32 bits work. None: no limit.
        rank: Rank, for methods with a rank. Default: 16.
        virtual_tokens: Number of virtual tokens, for prompt and prefix tuning. Default: 20.
        match_parameters: Approximate number of parameters to train, in place of `rank` or `virtual_tokens`.
        batch_size: Examples in an optimiser step.
        lengths: Tokens of the longest input and of the longest target.
        optimizer: `adamw`, `adamw-8bit` or `paged-adamw-8bit`.
        stack: Number of adapters that are trained at once, each on its own batch.
        gradient_checkpointing: Recompute activations in the backward pass. On a card, this is also turned on
            automatically if one example does not fit otherwise; see `turned_on` of the result.
        packing: Put several examples into one row of a batch. Only for decoder-only models.
        device: `cuda`, or `cpu` for training without a card.

    Returns:
        A `Fit` with the attributes `fits`, `micro_batch`, `needed` (bytes), `memory` (bytes by part) and `suggestions`.

    Raises:
        UserError: The checkpoint, the method, the card or their combination is not supported, or an argument has the
            wrong type.

    Example:
        >>> import petransfer as pt
        >>> found = pt.fit("nano/english", bits=32, batch_size=8, card="RTX 3060")
        >>> found.fits, found.micro_batch
        (True, 8)
        >>> found.memory.trained_parameters
        180224
    """
    spec = checkpoint_spec(checked_path(checkpoint, "checkpoint"))
    sizes = {"rank": rank, "virtual_tokens": virtual_tokens, "match_parameters": match_parameters}
    chosen = _method(method, bits, sizes)
    batch_size, stack = checked_integer(batch_size, "batch_size"), checked_integer(stack, "stack")
    lengths = _lengths(lengths)
    gradient_checkpointing = checked_bool(gradient_checkpointing, "gradient_checkpointing")
    packing = checked_bool(packing, "packing")
    device = checked_choice(device, "device", ("cuda", "cpu"))
    _check(batch_size, lengths, optimizer, stack, method, gradient_checkpointing)
    if packing and stack > 1:
        raise UserError(f"--stack {stack} cannot be combined with --packing; leave one of them out")
    limit = _card(card)

    import_transformers()
    from petransfer.memory.planner import plan
    from petransfer.memory.step_memory import StepSpec
    from petransfer.models.quiet_libraries import silence_libraries

    silence_libraries()
    step_spec = StepSpec(
        chosen, batch_size, *lengths, device, optimizer, gradient_checkpointing, members=stack, packing=packing,
        capability=(limit.capability if limit else None) or USUAL_CAPABILITY,
    )  # fmt: skip
    config, own_head = _checked_configuration(spec, step_spec)
    return plan(config, spec, step_spec, own_head, limit.bytes if limit else None)


def _checked_configuration(spec: CheckpointSpec, step_spec: StepSpec) -> tuple[Any, bool]:
    """Return the checkpoint's configuration, and whether its output head is untied."""
    from petransfer.memory.meta_model import virtual_tokens_of
    from petransfer.models.architecture import configuration
    from petransfer.models.complete_weights import refuse_missing_tensors
    from petransfer.models.lengths import refuse_virtual_tokens
    from petransfer.training.packing import check_packable
    from petransfer.training.stacked import refuse_layer_drop

    config, own_head = configuration(spec)
    refuse_virtual_tokens(config, spec.name, virtual_tokens_of(config, spec.name, step_spec.method, own_head))
    if spec.reinit != "all":
        refuse_missing_tensors(spec)
    if step_spec.packing:
        check_packable(spec.name, step_spec.method.name, config)
    if step_spec.members > 1:
        refuse_layer_drop(config)
    return config, own_head


def _check(
    batch_size: int, lengths: tuple[int, int], optimizer: str, stack: int, method: str, checkpointing: bool
) -> None:
    if checked_name(optimizer, "optimizer") not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    if batch_size > LARGEST_BATCH or stack > LARGEST_STACK or max(lengths) > LONGEST:
        raise UserError(
            f"a step of {batch_size:,} examples of {lengths[0]:,} and {lengths[1]:,} tokens in a stack of {stack:,} is "
            f"too large; give at most {LARGEST_BATCH:,} examples, {LONGEST:,} tokens and a stack of {LARGEST_STACK:,}"
        )
    if stack > 1 and METHODS.lookup(method).not_stacked:
        raise UserError(f"{method} is not stacked, because {METHODS.lookup(method).not_stacked}")
    if stack > 1 and checkpointing:
        raise UserError(f"--stack {stack} cannot be combined with --gradient-checkpointing; leave one of them out")


def _lengths(lengths: Any) -> tuple[int, int]:
    """Return the two numbers of `lengths`."""
    if isinstance(lengths, str | bytes) or not isinstance(lengths, Sequence) or len(lengths) != 2:
        raise UserError(f"lengths is {shown_value(lengths)}; give two whole numbers, such as (64, 128)")
    return checked_integer(lengths[0], "the first of lengths"), checked_integer(lengths[1], "the second of lengths")


def _card(card: Any) -> Card | None:
    """Return the card for the argument of `fit`: a name, a size or a number of bytes."""
    if card is None or isinstance(card, Card):
        return card
    if isinstance(card, str):
        return parse_card(card)
    if isinstance(card, bool) or not isinstance(card, int | float) or not SMALLEST <= card <= LARGEST:
        is_number = isinstance(card, int | float) and not isinstance(card, bool)
        size = f"{card:g}GB" if is_number and 1 <= card <= LARGEST / GB else "12GB"  # a small number is probably in GB
        given = f"{card:,} bytes" if is_number else shown_value(card)
        raise UserError(f"card is {given}; write a size such as '{size}', or a name such as 'RTX 3060'")
    return Card(int(card))


def _method(name: str, bits: int, sizes: dict[str, int | None]) -> MethodSpec:
    """Return the `MethodSpec` of a method. Only the size that the method uses is set."""
    if not is_whole(bits) or bits not in (4, 8, 16, 32):
        raise UserError(f"--bits {bits!r:.40}: give 4, 8, 16 or 32")
    known = METHODS.lookup(checked_name(name, "method"))
    sizes = {key: size if size is None else checked_integer(size, key) for key, size in sizes.items()}
    if bits in known.unsupported_bits:
        if known.trains_all_weights:
            raise UserError(f"full fine-tuning cannot train {bits}-bit weights; use --bits 16 or 32, or --method lora")
        raise UserError(f"{name} does not support {bits} bits: {known.unsupported_bits[bits]}")
    if sizes["match_parameters"] is not None and not known.size:
        raise UserError(f"--match-parameters: {name} has neither a rank nor virtual tokens")
    for key in ("rank", "virtual_tokens"):
        if sizes[key] is not None and key not in known.keys:
            raise UserError(f"--{key.replace('_', '-')}: {known.does_not_take(key)}")
        if sizes[key] is not None and sizes["match_parameters"] is not None:
            option = f"--{key.replace('_', '-')}"
            raise UserError(f"give either {option} or --match-parameters, which sets {option}")
    chosen = "match_parameters" if sizes["match_parameters"] is not None else known.size
    given: Any = {chosen: DEFAULT_SIZES.get(chosen) if sizes[chosen] is None else sizes[chosen]} if chosen else {}
    try:
        return method_of(MethodPart(name=name, bits=bits, **given))  # type: ignore[arg-type]
    except ValidationError as error:
        what = error.errors()[0]["msg"].replace("Input should", "it should")
        raise UserError(f"--{str(chosen).replace('_', '-')} {given.get(str(chosen))}: {what}") from None
