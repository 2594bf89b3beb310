"""Takes a bitsandbytes that is installed and cannot be imported as one that is not there; to be imported before peft.

peft imports it wherever it is installed, so that a broken one would fail at every width, and not at 8 and 4 bits alone.
"""

from __future__ import annotations

import importlib
import sys


def first_line(error: Exception) -> str:
    """What an error says, cut short, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]


def _problem() -> str:
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # a broken CUDA setup raises what it likes
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
        return first_line(error)
    return ""


# Why bitsandbytes cannot be imported; empty where it can.
PROBLEM = _problem()
