"""Operations on the meta device with remembered shapes return tensors of the same form as in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from petransfer.memory import meta_outputs
from petransfer.memory.meta_outputs import call_on_meta

ATEN = torch.ops.aten


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


NUMBERS = _meta(3, 4, dtype=torch.long)
# The calls of an entry differ in one thing only. If the key of the cache lacked it, their shapes would be mixed up.
PAIRS: dict[str, Callable[[], list[tuple[Any, tuple[Any, ...], dict[str, Any]]]]] = {
    "kind of number": lambda: [(ATEN.add.Tensor, (NUMBERS, 1), {}), (ATEN.add.Tensor, (NUMBERS, 1.0), {})],
    "dtype": lambda: [(ATEN.mul.Tensor, (NUMBERS, given), {}) for given in (NUMBERS, _meta(3, 4))],
    "strides": lambda: [(ATEN.relu.default, (given,), {}) for given in (_meta(4, 3), _meta(3, 4).t())],
    "keyword": lambda: [(ATEN.sum.default, (NUMBERS,), {"dtype": given}) for given in (None, torch.float64)],
    "operation": lambda: [(given, (NUMBERS,), {}) for given in (ATEN.neg.default, ATEN.isnan.default)],
    "list": lambda: [(ATEN.cat.default, ([NUMBERS] * given,), {}) for given in (2, 3)],
    "size": lambda: [(ATEN.max.dim, (given, 0), {}) for given in (NUMBERS, _meta(5, 4))],
    "number on the cpu": lambda: [(ATEN.mul.Tensor, (NUMBERS, torch.tensor(1.0)), {})],
}


def _form(out: Any) -> list[tuple[Any, ...]]:
    tensors = [out] if isinstance(out, torch.Tensor) else out
    return [(value.shape, value.stride(), value.dtype, value.untyped_storage().nbytes()) for value in tensors]


@pytest.mark.parametrize("name", PAIRS)
def test_remembered_shapes_equal_the_shapes_of_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_outputs, "_known", {})
    for func, args, kwargs in PAIRS[name]() * 2:  # the second round uses the remembered shapes
        plain, found = func(*args, **kwargs), call_on_meta(func, args, kwargs)
        assert isinstance(found, type(plain))
        assert _form(found) == _form(plain)


def test_repeated_operations_return_new_tensors_and_views_share_their_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_outputs, "_known", {})
    value = _meta(3, 4)
    first, second = (call_on_meta(ATEN.relu.default, (value,), {}) for _ in range(2))
    assert len(meta_outputs._known) == 1
    assert len({tensor.untyped_storage()._cdata for tensor in (value, first, second)}) == 3
    for func, given in ((ATEN.t.default, ()), (ATEN.relu_.default, ()), (ATEN._unsafe_view.default, ([12],))):
        for _ in range(2):
            out = call_on_meta(func, (value, *given), {})
            assert out.untyped_storage()._cdata == value.untyped_storage()._cdata
    monkeypatch.setattr(meta_outputs, "LIMIT", 2)
    for size in range(1, 5):
        call_on_meta(ATEN.relu.default, (_meta(size),), {})
    assert len(meta_outputs._known) <= 2
