"""Let peft be imported even if bitsandbytes is installed but broken. Import this module before peft.

peft imports an installed bitsandbytes. A broken installation, for example one without its CUDA library, would thus also
stop runs at 32 and 16 bits, which do not need bitsandbytes.
"""

from __future__ import annotations

import functools
import importlib
import sys

from petransfer.errors import reason_of


@functools.cache
def _first_problem() -> str:
    try:
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
