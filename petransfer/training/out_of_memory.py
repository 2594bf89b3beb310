"""Recognise out-of-memory errors, and choose default micro-batches that fit in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from petransfer.errors import UserError
from petransfer.models.wrappers import base_model_of


class OutOfMemory(MemoryError):
    """Raised if memory ran out, on a GPU or on the CPU."""


# Parts of the messages of plain RuntimeErrors that mean that memory ran out. In this order, they come from torch on
# Windows, torch on Linux, CUDA, cuBLAS and cuDNN.
_MESSAGES = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or Python means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # On a CPU, torch raises a plain RuntimeError if memory runs out.
    return any(message in str(error) for message in _MESSAGES)


@contextlib.contextmanager
def raising_out_of_memory() -> Iterator[None]:
    """Convert every out-of-memory error of torch or Python in the `with` block into `OutOfMemory`."""
    try:
        yield
    except OutOfMemory:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(error)) from error


def release_cached_memory() -> None:
    """Free the GPU memory that torch holds in its cache."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Default micro-batch on a CPU, in examples, if the model skips padding. Smaller and larger values were slower on SCAN
# and COGS.
PACKED_EXAMPLES = 32

# Default maximum number of tokens in a micro-batch on a CPU, if the model skips padding. The attention does not skip
# it, so a batch of very different lengths is cut. A step on COGS (batch size 32) took 229 ms with this limit and 251 ms
# without it (full fine-tuning), or 200 and 217 ms (LoRA): nano, one thread, medians of 8 turns, AMD EPYC.
PACKED_TOKENS = 2048

# Default maximum number of tokens in a micro-batch on a GPU, padding included. A matrix product with this many rows
# takes longer than the start of its kernel, so it keeps the GPU busy. Smaller micro-batches would have less padding but
# would not be faster. Estimated for a model of t5-base's size, not measured.
GPU_TOKENS = 4096


def default_token_budget(device: torch.device, skips_padding: bool = False) -> int:
    """Return the default maximum number of tokens in a micro-batch. 0 means no limit.

    Args:
        skips_padding: whether the model skips padding, as some models do on a CPU.
    """
    if skips_padding:
        return PACKED_TOKENS
    return GPU_TOKENS if device.type == "cuda" else 0


def default_micro_batch(batch_size: int, device: torch.device, skips_padding: bool = False) -> int:
    """Return the default number of examples in a micro-batch: the whole batch on a GPU, at most 8 on a CPU.

    Args:
        skips_padding: whether the model skips padding, as some models do on a CPU.
    """
    if skips_padding:
        return min(batch_size, PACKED_EXAMPLES)
    # On a GPU, the token budget limits the micro-batch. On a CPU, a micro-batch of 8 examples of similar length has
    # less padding than one of 32. This made training on SCAN 1.5 times as fast.
    return batch_size if device.type == "cuda" else min(batch_size, 8)


def enable_gradient_checkpointing(model: torch.nn.Module, **options: Any) -> None:
    """Enable gradient checkpointing: every layer recomputes its activations in the backward pass.

    `options` are further arguments of `torch.utils.checkpoint.checkpoint`.

    Raises:
        UserError: the architecture or the method does not support gradient checkpointing.
    """
    base = base_model_of(model)
    if _has_prefix(model):
        raise UserError("prefix tuning does not work with gradient checkpointing; remove --gradient-checkpointing")
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise UserError(
            f"{type(base).__name__} does not support gradient checkpointing; remove --gradient-checkpointing"
        )
    # With a frozen first layer, the reentrant variant trains nothing and raises no error.
    base.gradient_checkpointing_enable({"use_reentrant": False, **options})


def _has_prefix(model: Any) -> bool:
    configs = getattr(model, "peft_config", {}).values()
    return any(config.peft_type == "PREFIX_TUNING" for config in configs)
