"""Sum values and gradients over the processes of one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import distributed

# Gradients are summed in chunks of this many bytes, so that the sum needs little extra memory.
CHUNK_BYTES = 2**25


def agree(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the sum of each value over all processes. Every process must pass the same number of values."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    found: list[float] = tensor.tolist()
    return found


def sum_gradients(parameters: Sequence[torch.nn.Parameter], present: Sequence[float]) -> None:
    """Sum the gradients over all processes in place. Every process gets bitwise equal sums.

    Args:
        parameters: trained tensors, in the same order in every process.
        present: for each parameter, the number of processes with a gradient. A missing gradient counts as zero.
    """
    # DistributedDataParallel would sum during the backward pass. A process that runs out of memory could then not
    # repeat the step with a smaller micro-batch.
    some = [parameter for parameter, count in zip(parameters, present, strict=True) if count]
    for parameter in some:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for chunk in _chunks([parameter.grad for parameter in some if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in chunk])
        distributed.all_reduce(flat)
        start = 0
        for gradient in chunk:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


def _chunks(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    chunk: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if chunk and (gradient.dtype != chunk[0].dtype or size + gradient.nbytes > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(gradient)
        size += gradient.nbytes
    if chunk:
        yield chunk
