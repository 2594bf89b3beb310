"""Import all modules that the commands need, so that a forked process starts at once (see forked_command)."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil

import petransfer

for module in pkgutil.walk_packages(petransfer.__path__, "petransfer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in ("transformers.models.t5.modeling_t5", "peft", "accelerate", "pandas", "matplotlib.pyplot", "scipy.stats"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
