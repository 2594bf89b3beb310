"""Cache the shapes of the tensors that operations return on the meta device.

PyTorch computes the shapes of most operations in Python, which is most of a prediction's time. The layers of a model
repeat the same operations on the same shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

import torch

# Number of remembered calls. Models with very many different shapes would otherwise fill the memory.
LIMIT = 50_000

# Shape, strides and dtype of each returned tensor, and whether the operation returns a single tensor.
_Shapes = tuple[tuple[tuple[Any, ...], ...], bool]

_known: dict[Hashable, _Shapes | None] = {}


def call_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an operation of PyTorch on meta tensors.

    If the operation returned new tensors for arguments with the same shapes before, new tensors of the same shapes are
    returned without calling it.
    """
    if not _only_returns_tensors(func):
        return func(*args, **kwargs)
    tensors: list[torch.Tensor] = []
    key = (func, _described(args, tensors), _described(tuple(kwargs.items()), tensors))
    if not all(tensor.is_meta for tensor in tensors):  # tensors of Python numbers follow other dtype rules
        return func(*args, **kwargs)
    shapes = _known.get(key)
    if shapes:
        new = tuple(torch.empty_strided(*shape, dtype=dtype, device="meta") for *shape, dtype in shapes[0])
        return new[0] if shapes[1] else new
    out = func(*args, **kwargs)
    if key not in _known:
        if len(_known) >= LIMIT:
            _known.clear()
        _known[key] = _shapes_of_new(out, tensors)
    return out


@functools.cache
def _only_returns_tensors(func: Any) -> bool:
    """Return whether an operation changes no argument, returns no view and returns only tensors."""
    schema = func._schema
    if any(value.alias_info is not None for value in (*schema.arguments, *schema.returns)):
        return False
    return bool(schema.returns) and all(str(value.type) == "Tensor" for value in schema.returns)


def _described(value: Any, tensors: list[torch.Tensor]) -> Hashable:
    """Return the properties of an argument that determine the returned shapes. Add its tensors to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return (tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple([_described(part, tensors) for part in value])
    return (type(value), value)  # 1, 1.0 and True are equal, but give different dtypes


def _shapes_of_new(out: Any, given: list[torch.Tensor]) -> _Shapes | None:
    """Return the shapes of returned tensors. None if `empty_strided` cannot make such tensors."""
    single = isinstance(out, torch.Tensor)
    returned = (out,) if single else tuple(out)
    storages = {tensor.untyped_storage()._cdata for tensor in given}
    found = []
    for tensor in returned:
        if type(tensor) is not torch.Tensor or not tensor.is_meta or tensor.storage_offset():
            return None
        shape = (tuple(tensor.shape), tensor.stride())
        same = torch.empty_strided(*shape, dtype=tensor.dtype, device="meta")
        storage = tensor.untyped_storage()
        if storage._cdata in storages or storage.nbytes() != same.untyped_storage().nbytes():
            return None
        storages.add(storage._cdata)
        found.append((*shape, tensor.dtype))
    return tuple(found), single
