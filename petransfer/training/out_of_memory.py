"""Running out of memory: how it is recognised, and the defaults that make it rare."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from petransfer.errors import UserError


class OutOfMemory(MemoryError):
    """Memory ran out, on a GPU or on the CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; on the CPU torch raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "not enough memory" in str(error) or "out of memory" in str(error)


@contextlib.contextmanager
def raising_out_of_memory() -> Iterator[None]:
    """Raise `OutOfMemory` in place of any error within that means that memory ran out."""
    try:
        yield
    except OutOfMemory:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(error)) from error


def release_cached_memory() -> None:
    """Give the GPU memory that torch caches back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Examples per pass on a CPU where no padding is computed: measured to be faster than fewer or more on SCAN and COGS.
PACKED_EXAMPLES = 32

# Tokens of a forward pass, padding included, that keep a GPU busy: a matrix product of so many rows takes longer than
# its launch, so fewer tokens would only save padding. Estimated for a model of t5-base's size, not timed.
GPU_TOKENS = 4096


def default_token_budget(device: torch.device) -> int:
    """Return the tokens of a micro-batch on a GPU; 0, for no such bound, on a CPU."""
    return GPU_TOKENS if device.type == "cuda" else 0


def default_micro_batch(batch_size: int, device: torch.device) -> int:
    """Return the examples of a micro-batch: the whole batch on a GPU (the token budget cuts it), at most 8 on a CPU.

    On a CPU 8 similar lengths need less padding: 1.5 times as fast as 32 on SCAN, measured.
    """
    return batch_size if device.type == "cuda" else min(batch_size, 8)


def enable_gradient_checkpointing(model: torch.nn.Module, **options: Any) -> None:
    """Make every layer compute its activations again in the backward pass instead of keeping them.

    This is not the reentrant variant, which would silently train nothing under a frozen first layer. options: further
    arguments of `torch.utils.checkpoint.checkpoint`.

    Raises:
        UserError: the architecture or the method does not support it.
    """
    base: Any = model
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    if _has_prefix(model):
        raise UserError("prefix tuning does not work with gradient checkpointing; remove --checkpointing")
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise UserError(f"{type(base).__name__} does not support gradient checkpointing; remove --checkpointing")
    base.gradient_checkpointing_enable({"use_reentrant": False, **options})


def _has_prefix(model: Any) -> bool:
    configs = getattr(model, "peft_config", {}).values()
    return any(config.peft_type == "PREFIX_TUNING" for config in configs)
