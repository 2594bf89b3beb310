"""Counts the bytes of live tensors while code runs on the meta device, where nothing is computed or stored."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# CUDA's caching allocator hands out multiples of this (c10/cuda/CUDACachingAllocator); the CPU's of 64.
BLOCK = {"cuda": 512, "cpu": 64}


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every storage that an operation makes counts until nobody holds it. `live` and `peak` in bytes.

    Questions about values, which have none here (is any of the mask padding?), are answered with no.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.block = BLOCK[device]
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._watch: Callable[[torch.Tensor], None] = lambda tensor: None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        extra = _inner_bytes(func, args)
        if extra:  # gone again when the operation ends
            self.peak = max(self.peak, self.live + extra)
        return out

    def count(self, tensor: torch.Tensor) -> None:
        """Counts the tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = math.ceil(storage.nbytes() / self.block) * self.block
        self._sizes[key] = size
        weakref.finalize(storage, self._gone, key)
        self.live += size
        self._watch(tensor)
        self.peak = max(self.peak, self.live)

    def size_of(self, tensor: torch.Tensor) -> int:
        """The bytes that the tensor's storage counts for."""
        return self._sizes.get(tensor.untyped_storage()._cdata, 0)

    def watch(self, call: Callable[[torch.Tensor], None]) -> None:
        """`call` gets every tensor that has a storage of its own, when it is made."""
        self._watch = call

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def _inner_bytes(func: Any, args: Any) -> int:
    """What an operation of bitsandbytes holds inside: the layer's weight in the width that it computes in."""
    if "bitsandbytes.gemm_4bit" in str(func):
        return int(math.prod(args[2]) * args[0].element_size())
    return 0
