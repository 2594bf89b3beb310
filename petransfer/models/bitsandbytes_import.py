"""Import peft where bitsandbytes is installed but broken. Import this module before peft.

peft imports bitsandbytes wherever it is installed. A broken installation, one without its CUDA library for example,
would fail at 32 and 16 bits too, which do not need it.
"""

from __future__ import annotations

import functools
import importlib
import sys


@functools.cache
def _first_problem() -> str:
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # a broken CUDA setup raises all kinds of errors
        return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
    return ""


def import_problem() -> str:
    """Return why bitsandbytes cannot be imported, "" where it can."""
    hidden = "bitsandbytes" in sys.modules and sys.modules["bitsandbytes"] is None
    return _first_problem() or ("import of bitsandbytes halted" if hidden else "")


def import_peft() -> None:
    """Import peft; where bitsandbytes is broken, let peft find that it is not installed, which peft remembers."""
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
