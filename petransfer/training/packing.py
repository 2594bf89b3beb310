"""Pack several examples of a decoder-only model into one row, each with attention to its own tokens only.

transformers finds the boundaries where the position ids begin again at 0, if there is no attention mask, and lets no
token attend across one. So a packed row trains exactly what its examples train apart, without padding.
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

# Rows have room for the longest example, and for at least this many tokens. The memory of attention grows with its
# square.
FEWEST_TOKENS = 512
# The largest relative difference between the losses of packed and separate examples, which rounding explains.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
_ADVICE = "leave train.packing (--packing) out"


def refuse_packing(spec: RunSpec, config: Any) -> None:
    """Refuse a run with packing if its model or method cannot have it. No weights are needed.

    Raises:
        UserError: The model is an encoder-decoder or takes no position ids, or the method adds virtual tokens.
    """
    if not spec.train.packing:
        return
    name = spec.checkpoint.name
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"train.packing: {name} is an encoder-decoder; only decoder-only models are packed; {_ADVICE}")
    if METHODS.lookup(spec.method.name).virtual_tokens_before:
        raise UserError(
            f"train.packing: {spec.method.name} adds virtual tokens to a row, and packed examples would share them; "
            f"{_ADVICE}"
        )
    kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    if kind is not None and "position_ids" not in inspect.signature(kind.forward).parameters:
        raise UserError(f"train.packing: {name} ({config.model_type}) takes no position ids; {_ADVICE}")


@torch.no_grad()
def check_packing(model: torch.nn.Module, examples: Sequence[Encoded], layout: Layout) -> None:
    """Compare the loss of a few packed examples with their loss apart.

    Raises:
        UserError: The losses differ by more than rounding: the model looks across the boundaries.
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
            f"train.packing: the loss of packed examples is {packed:.4g}, and {apart:.4g} if they are apart, so this "
            f"model looks across the boundaries of examples; {_ADVICE}"
        )


def collate_packed(examples: Sequence[Encoded]) -> Tensors:
    """Make the tensors of one micro-batch with several examples in each row.

    input_ids, position_ids and labels (rows, tokens). Labels are already shifted, as in `collate`. The rest of a row
    is an example of its own, without labels.
    """
    rows = _rows([len(one.input_ids) + len(one.target_ids) - 1 for one in examples])
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
        positions[number, start:] = torch.arange(width - start)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def _rows(lengths: Sequence[int]) -> list[list[int]]:
    """Put examples into rows, the longest first, each into the first row with room; return their indices by row."""
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


def _on(batch: Tensors, device: torch.device) -> Tensors:
    return {name: tensor.to(device) for name, tensor in batch.items()}
