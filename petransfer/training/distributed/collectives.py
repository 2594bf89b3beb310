"""What the processes of one run tell each other while they train: gradients, and whether to go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import distributed

# Gradients travel in pieces of so many bytes, so that they take little memory beside themselves.
PIECE = 2**25


def agree(values: Sequence[float], device: torch.device) -> list[float]:
    """The sum over all processes of each value; every process must ask for as many."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    found: list[float] = tensor.tolist()
    return found


def sum_gradients(parameters: Sequence[torch.nn.Parameter], present: Sequence[float]) -> None:
    """Gives every process the sum of all processes' gradients, the same to the last bit.

    present: how many processes have a gradient for each parameter; where one of them has none its share is zero.

    Not by DistributedDataParallel: it sums while a process still computes, and a process that then runs out of memory
    could not step back and take less.
    """
    some = [parameter for parameter, count in zip(parameters, present, strict=True) if count]
    for parameter in some:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for piece in _pieces([parameter.grad for parameter in some if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in piece])
        distributed.all_reduce(flat)
        start = 0
        for gradient in piece:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


def _pieces(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    piece: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if piece and (gradient.dtype != piece[0].dtype or size + gradient.nbytes > PIECE):
            yield piece
            piece, size = [], 0
        piece.append(gradient)
        size += gradient.nbytes
    if piece:
        yield piece
