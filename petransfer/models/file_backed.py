"""Keep the weights of a model in files, for models that are larger than the memory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch.overrides import TorchFunctionMode

# A tensor of at least this many bytes is kept in a file.
LEAST = 2**20


class FileBackedTensors(TorchFunctionMode):
    """A context in which large new tensors are stored in files of a folder.

    Random initial values are the same as without files. Deleting a tensor frees its disk space.

    Args:
        folder: Folder for the files.

    Raises:
        OSError: The disk is full.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func not in (torch.empty, torch.empty_like) or given.get("device") not in (None, "cpu", torch.device("cpu")):
            return func(*args, **given)
        like = func(*args, **{**given, "device": "meta"})
        if like.nbytes < LEAST or not like.is_contiguous():
            return func(*args, **given)
        return self.empty(like.shape, like.dtype)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialized tensor in a new file."""
        handle, name = tempfile.mkstemp(dir=self._folder)
        try:
            if hasattr(os, "posix_fallocate"):  # otherwise a full disk would kill the process at a later write
                os.posix_fallocate(handle, 0, shape.numel() * dtype.itemsize)
            return torch.from_file(name, shared=True, size=shape.numel(), dtype=dtype).view(shape)
        finally:
            os.close(handle)
            with contextlib.suppress(OSError):  # some systems cannot delete a mapped file until the folder is removed
                Path(name).unlink()

    @torch.no_grad()
    def narrow(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        """Convert the tensors of a model to `dtype` in place. Large results are stored in files."""
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                large = value.nbytes >= LEAST
                narrow = self.empty(value.shape, dtype) if large else torch.empty_like(value, dtype=dtype)
                value.data = narrow.copy_(value)


@torch.no_grad()
def copy_parameter(source: torch.nn.Module, name: str, target: torch.Tensor) -> None:
    """Copy the parameter called `name` from `source` into `target`. The weights of `source` can be on disk."""
    owner, _, leaf = name.rpartition(".")
    module = source.get_submodule(owner)
    with align_module_device(module):
        target.copy_(getattr(module, leaf))
