"""Functions that bitsandbytes compiles at its import are compiled at their first call instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from petransfer.models import bitsandbytes_import
from petransfer.models.bitsandbytes_import import compile_at_first_call


def test_a_function_is_compiled_once_at_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def compiling(function: Any, **options: Any) -> Any:
        given.append(options)
        return lambda *args, **kwargs: (function(*args, **kwargs), "compiled")

    def double(value: int, by: int = 2) -> int:
        return value * by

    assert torch.compile is bitsandbytes_import._torch_compile
    monkeypatch.setattr(bitsandbytes_import, "_torch_compile", compiling)
    for late in (compile_at_first_call(double, dynamic=False), compile_at_first_call(dynamic=False)(double)):
        given.clear()
        assert late.__name__ == "double"
        assert not given
        assert [late(2), late(2, by=3)] == [(4, "compiled"), (6, "compiled")]
        assert given == [{"dynamic": False}]
