"""petransfer: parameter-efficient fine-tuning of T5-family and decoder-only models, and what pretraining transfers.

The public API is imported on first use, so that importing petransfer loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Example": "petransfer.tasks",
    "Recipe": "petransfer.recipe.schema",
    "RunError": "petransfer.errors",
    "RunSpec": "petransfer.recipe.spec",
    "UserError": "petransfer.errors",
    "checkpoint_spec": "petransfer.checkpoints.registry",
    "expand": "petransfer.study.grid",
    "load": "petransfer.checkpoints.load",
    "load_recipe": "petransfer.recipe.load",
    "load_task": "petransfer.tasks",
    "run_one": "petransfer.study.run",
}

if TYPE_CHECKING:
    from petransfer.checkpoints.load import load as load
    from petransfer.checkpoints.registry import checkpoint_spec as checkpoint_spec
    from petransfer.errors import RunError as RunError
    from petransfer.errors import UserError as UserError
    from petransfer.recipe.load import load_recipe as load_recipe
    from petransfer.recipe.schema import Recipe as Recipe
    from petransfer.recipe.spec import RunSpec as RunSpec
    from petransfer.study.grid import expand as expand
    from petransfer.study.run import run_one as run_one
    from petransfer.tasks import Example as Example
    from petransfer.tasks import load_task as load_task


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'petransfer' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
