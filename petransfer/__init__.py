"""petransfer: parameter-efficient fine-tuning of T5-family and decoder-only models, and what pretraining transfers.

The public API is imported on first use, so that importing petransfer loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Example": "petransfer.tasks",
    "load_task": "petransfer.tasks",
    "Recipe": "petransfer.recipe.schema",
    "load_recipe": "petransfer.recipe.load",
    "expand": "petransfer.study.grid",
    "RunSpec": "petransfer.recipe.spec",
    "load": "petransfer.checkpoints.load",
    "checkpoint_spec": "petransfer.checkpoints.registry",
    "run_one": "petransfer.study.run",
    "UserError": "petransfer.errors",
    "RunError": "petransfer.errors",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from petransfer.checkpoints.load import load
    from petransfer.checkpoints.registry import checkpoint_spec
    from petransfer.errors import RunError, UserError
    from petransfer.recipe.load import load_recipe
    from petransfer.recipe.schema import Recipe
    from petransfer.recipe.spec import RunSpec
    from petransfer.study.grid import expand
    from petransfer.study.run import run_one
    from petransfer.tasks import Example, load_task


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'petransfer' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value
