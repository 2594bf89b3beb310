"""Let peft be imported even if bitsandbytes is installed but broken. Import this module before peft.

peft imports an installed bitsandbytes. A broken installation, for example one without its CUDA library, would thus also
stop runs at 32 and 16 bits, which do not need bitsandbytes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from petransfer.errors import reason_of

_torch_compile = torch.compile


@contextlib.contextmanager
def _compiling_at_first_call() -> Iterator[None]:
    """Let `torch.compile` compile each function when it is first called."""
    # bitsandbytes compiles functions when it is imported. This imports torch's compiler, which takes a second.
    torch.compile = compile_at_first_call  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = _torch_compile


def compile_at_first_call(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Return a function that compiles `function` with `torch.compile(function, **options)` at its first call."""
    if function is None:
        return functools.partial(compile_at_first_call, **options)

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return _torch_compile(function, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


@functools.cache
def _first_problem() -> str:
    try:
        with _compiling_at_first_call():
            importlib.import_module("bitsandbytes")
    except Exception as error:  # a broken CUDA setup raises all kinds of errors
        return reason_of(error, 120)
    return ""


def import_problem() -> str:
    """Return why bitsandbytes cannot be imported. Empty if it can."""
    hidden = "bitsandbytes" in sys.modules and sys.modules["bitsandbytes"] is None
    return _first_problem() or ("import of bitsandbytes halted" if hidden else "")


def import_peft() -> None:
    """Hide a broken bitsandbytes from peft while peft is imported."""
    if not _first_problem():
        return
    before = sys.modules.pop("bitsandbytes", None)
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("peft").import_utils.is_bnb_available()
    finally:
        del sys.modules["bitsandbytes"]
        if before is not None:
            sys.modules["bitsandbytes"] = before


import_peft()
