"""petransfer: parameter-efficient fine-tuning of T5-family and decoder-only models, and studies of pretraining effects.

Each name of the public API is imported at its first use. Importing petransfer therefore does not import torch.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from petransfer.models.thread_turns import import_lock

__version__ = "0.1.0"

_PUBLIC = {
    "Adapter": "petransfer.sharing.adapter",
    "Example": "petransfer.data",
    "Recipe": "petransfer.recipe.schema",
    "RunError": "petransfer.errors",
    "RunSpec": "petransfer.recipe.run_spec",
    "Study": "petransfer.api",
    "UserError": "petransfer.errors",
    "exact_match": "petransfer.evaluation.exact_match",
    "checkpoint_spec": "petransfer.models.registry",
    "expand": "petransfer.study.grid",
    "fit": "petransfer.memory.fit",
    "load": "petransfer.models.loading",
    "load_recipe": "petransfer.recipe.loading",
    "load_task": "petransfer.data",
    "run_one": "petransfer.study.single_run",
    "train": "petransfer.api",
}

if TYPE_CHECKING:
    from petransfer.api import Study as Study
    from petransfer.api import train as train
    from petransfer.data import Example as Example
    from petransfer.data import load_task as load_task
    from petransfer.errors import RunError as RunError
    from petransfer.errors import UserError as UserError
    from petransfer.evaluation.exact_match import exact_match as exact_match
    from petransfer.memory.fit import fit as fit
    from petransfer.models.loading import load as load
    from petransfer.models.registry import checkpoint_spec as checkpoint_spec
    from petransfer.recipe.loading import load_recipe as load_recipe
    from petransfer.recipe.run_spec import RunSpec as RunSpec
    from petransfer.recipe.schema import Recipe as Recipe
    from petransfer.sharing.adapter import Adapter as Adapter
    from petransfer.study.grid import expand as expand
    from petransfer.study.single_run import run_one as run_one


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'petransfer' has no attribute '{name}'")
    with import_lock():
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        if inspect.isfunction(value):  # messages name options such as --out; make them name arguments
            from petransfer.python_arguments import naming_arguments

            value = naming_arguments()(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *sorted(_PUBLIC)]
