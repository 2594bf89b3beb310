"""Count the bytes of live tensors while code runs on the meta device, where tensors have no values."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from petransfer.memory.meta_outputs import call_on_meta

# The allocator rounds each size up to a multiple of this many bytes. On a GPU, it is CUDA's caching allocator
# (c10/cuda/CUDACachingAllocator).
BLOCK = {"cuda": 512, "cpu": 64}


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every new tensor under a tag until the tensor is freed.

    Args:
        device: The simulated device, which determines how sizes are rounded up.
        tag: Function that returns the tag of a new tensor.

    Attributes:
        live: Bytes that are allocated now, by tag.
        peak: Bytes that were allocated when their sum was largest, by tag.
    """

    def __init__(self, device: str, tag: Callable[[torch.Tensor], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tag = tag
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._block = BLOCK[device]
        self._known: dict[int, tuple[str, int]] = {}
        self._sum = self._largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Code that reads the value of a tensor, for example to find padding, gets False: meta tensors have no values.
        if func is torch.ops.aten._local_scalar_dense.default:
            return False
        out = call_on_meta(func, args, kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf, self.tag(leaf))
        inner = _inner_bytes(func, args)
        if inner:
            self.add("workspace", inner)
            self.add("workspace", -inner)
        return out

    def count(self, tensor: torch.Tensor, tag: str) -> None:
        """Count the tensor's storage once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = math.ceil(storage.nbytes() / self._block) * self._block
        self._known[key] = (tag, size)
        weakref.finalize(storage, self._gone, key)
        self.add(tag, size)

    def retag(self, tensor: torch.Tensor, tag: str) -> None:
        """Move the bytes of the tensor's storage to another tag."""
        key = tensor.untyped_storage()._cdata
        before, size = self._known.get(key, (tag, 0))
        self.live[before] -= size
        self.live[tag] += size
        self._known[key] = (tag, size)

    def add(self, tag: str, size: int) -> None:
        """Add `size` bytes to a tag, and update `peak`. A negative `size` subtracts."""
        self.live[tag] += size
        self._sum += size
        if self._sum > self._largest:
            self._largest = self._sum
            self.peak = self.live.copy()

    def _gone(self, key: int) -> None:
        tag, size = self._known.pop(key, ("", 0))
        self.add(tag, -size)


def _inner_bytes(func: Any, args: Any) -> int:
    """Return the bytes that an operation needs temporarily."""
    name = str(func)
    # bitsandbytes makes a temporary copy of the 4-bit weight in the dtype of the computation
    if "bitsandbytes.gemm_4bit" in name:
        return int(math.prod(args[2]) * args[0].element_size())
    # the product of 8-bit rows and weights is first an int32 and then an fp16 tensor
    if "bitsandbytes.int8_scaled_mm" in name:
        return 6 * int(math.prod(args[0].shape[:-1]) * args[1].shape[0])
    # the search for outliers makes absolute values in fp16, and compares each with the threshold
    if "bitsandbytes.int8_vectorwise_quant" in name:
        return 3 * int(args[0].numel())
    return 0
