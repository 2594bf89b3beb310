"""Pack several training examples into one row, for decoder-only models. An example attends only to its own tokens.

Packed examples need less padding than separate examples, and give the same gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from petransfer.data.encoding import Encoded, Layout
from petransfer.errors import UserError
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec
from petransfer.training.batches import IGNORED, Tensors, collate
from petransfer.training.losses import token_loss

# A row has room for this many tokens, or for the longest example if that has more tokens. Longer rows would need much
# more memory, because attention's memory grows with the square of a row's length.
FEWEST_TOKENS = 512
# The largest relative difference between the losses of packed and of separate examples that counts as rounding.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
_ADVICE = "leave train.packing (--packing) out"


def refuse_packing(spec: RunSpec, config: Any) -> None:
    """Refuse a run with packing if its model or its method does not support packing. See `check_packable`."""
    if spec.train.packing:
        check_packable(spec.checkpoint.name, spec.method.name, config)


def check_packable(name: str, method: str, config: Any) -> None:
    """Check whether a model and a method support packing. No weights are needed.

    Args:
        name: name of the checkpoint.
        method: name of the method.

    Raises:
        UserError: the model is an encoder-decoder or has no input for position ids, or the method adds virtual tokens.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"train.packing: {name} is an encoder-decoder; only decoder-only models are packed; {_ADVICE}")
    if METHODS.lookup(method).virtual_tokens_before:
        raise UserError(
            f"train.packing: {method} adds virtual tokens to a row, and packed examples would share them; {_ADVICE}"
        )
    kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    if kind is not None and "position_ids" not in inspect.signature(kind.forward).parameters:
        raise UserError(f"train.packing: {name} ({config.model_type}) has no input for position ids; {_ADVICE}")


@torch.no_grad()
def check_packing(model: torch.nn.Module, examples: Sequence[Encoded], layout: Layout) -> None:
    """Check that a few examples have the same loss in a packed row as in separate rows.

    Raises:
        UserError: the losses differ by more than rounding. Tokens of one example then attend to another example.
    """
    few = sorted(examples[:64], key=lambda example: len(example.input_ids) + len(example.target_ids))[:3]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    apart = sum(float(token_loss(model, _on(collate([one], layout), device))) for one in few)
    packed = float(token_loss(model, _on(collate_packed(few), device)))
    model.train(was_training)
    dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float32)
    if not abs(packed - apart) <= TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]) * abs(apart):
        raise UserError(
            f"train.packing: the loss is {packed:.4g} for packed examples and {apart:.4g} for the same examples in "
            f"separate rows, so tokens of this model attend to other examples; {_ADVICE}"
        )


def collate_packed(examples: Sequence[Encoded]) -> Tensors:
    """Make the tensors of one micro-batch, with several examples in each row.

    The tensors are input_ids, position_ids and labels, each (rows, tokens). Labels are shifted as in `collate`.
    """
    rows = packed_rows([len(one.input_ids) + len(one.target_ids) - 1 for one in examples])
    width = max(sum(len(examples[at].input_ids) + len(examples[at].target_ids) - 1 for at in row) for row in rows)
    ids, positions, labels = (torch.zeros((len(rows), width), dtype=torch.long) for _ in range(3))
    labels.fill_(IGNORED)
    for number, row in enumerate(rows):
        start = 0
        for at in row:
            one = examples[at]
            joined = one.input_ids + one.target_ids[:-1]
            end = start + len(joined)
            ids[number, start:end] = torch.tensor(joined)
            positions[number, start:end] = torch.arange(len(joined))
            labels[number, end - len(one.target_ids) : end] = torch.tensor(one.target_ids)
            start = end
        # The unused positions at the end of a row form one more example, which has no labels.
        positions[number, start:] = torch.arange(width - start)
    # Without an attention mask, transformers takes each position id 0 as the start of a new example, and lets no token
    # attend to another example.
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def packed_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Distribute examples over rows. Return the indices of the examples in each row.

    lengths: number of tokens of each example, input and target together.
    """
    # The longest example is placed first. Each example goes into the first row with enough room.
    room = max(FEWEST_TOKENS, *lengths)
    rows: list[list[int]] = []
    left: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        row = next((number for number, free in enumerate(left) if free >= lengths[at]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(at)
        left[row] -= lengths[at]
    return rows


def packed_size(lengths: Sequence[int]) -> tuple[int, int]:
    """Return the number of rows of a micro-batch of packed examples, and the number of tokens of each row.

    Args:
        lengths: The number of tokens of each example, input and target together.
    """
    rows = packed_rows(lengths)
    return len(rows), max(sum(lengths[at] for at in row) for row in rows)


def _on(batch: Tensors, device: torch.device) -> Tensors:
    return {name: tensor.to(device) for name, tensor in batch.items()}
