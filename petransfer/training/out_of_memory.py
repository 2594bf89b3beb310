"""Recognise out-of-memory errors, and choose default micro-batches that make them rare."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from petransfer.errors import UserError
from petransfer.models.wrappers import base_model_of


class OutOfMemory(MemoryError):
    """Memory ran out, on a GPU or on the CPU."""


# Parts of the messages of plain RuntimeErrors: of torch on Windows and on Linux, of CUDA, and of cuBLAS and cuDNN.
_MESSAGES = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out. On the CPU torch raises a plain RuntimeError for this."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(message in str(error) for message in _MESSAGES)


@contextlib.contextmanager
def raising_out_of_memory() -> Iterator[None]:
    """Raise `OutOfMemory` instead of any other error that means that memory ran out while the context is open."""
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


# Examples per pass on a CPU if padding is not computed. Smaller and larger values were slower on SCAN and COGS.
PACKED_EXAMPLES = 32

# Tokens of a forward pass, padding included, that keep a GPU busy: a matrix product with this many rows takes longer
# than its launch. A smaller budget would only save padding. Estimated for a model of t5-base's size, not timed.
GPU_TOKENS = 4096


def default_token_budget(device: torch.device) -> int:
    """Return the maximum number of tokens in a micro-batch: `GPU_TOKENS` on a GPU, 0 (no limit) on a CPU."""
    return GPU_TOKENS if device.type == "cuda" else 0


def default_micro_batch(batch_size: int, device: torch.device) -> int:
    """Return the examples of a micro-batch: the whole batch on a GPU (the token budget cuts it), at most 8 on a CPU.

    On a CPU, 8 examples of similar length need less padding than 32: 1.5 times as fast on SCAN, measured.
    """
    return batch_size if device.type == "cuda" else min(batch_size, 8)


def enable_gradient_checkpointing(model: torch.nn.Module, **options: Any) -> None:
    """Enable gradient checkpointing: every layer recomputes its activations in the backward pass.

    Uses the non-reentrant variant, because the reentrant one silently trains nothing if the first layer is frozen.
    options: further arguments of `torch.utils.checkpoint.checkpoint`.

    Raises:
        UserError: the architecture or the method does not support gradient checkpointing.
    """
    base = base_model_of(model)
    if _has_prefix(model):
        raise UserError("prefix tuning does not work with gradient checkpointing; remove --checkpointing")
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise UserError(f"{type(base).__name__} does not support gradient checkpointing; remove --checkpointing")
    base.gradient_checkpointing_enable({"use_reentrant": False, **options})


def _has_prefix(model: Any) -> bool:
    configs = getattr(model, "peft_config", {}).values()
    return any(config.peft_type == "PREFIX_TUNING" for config in configs)
