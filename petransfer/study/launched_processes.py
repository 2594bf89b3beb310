"""Read which processes a launcher started, and refuse unsupported launches. Imports no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec

_log = logging.getLogger(__name__)

# Environment variables that `accelerate launch`, torchrun and the common MPIs set. The first one that is set is used.
_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# The id of the parent process, read before the slow imports. The parent is a launcher if `launched_process` finds the
# variables of a launcher.
_parent = os.getppid()

# Modes of Accelerate that replace the model and the optimiser by their own.
_ENGINES = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}


@dataclass(frozen=True)
class LaunchedProcess:
    """Process number `index` of `count`, counted from 0. Process 0 leads.

    Only the leading process claims runs, writes files and prints.
    """

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        return self.index == 0

    @property
    def shared(self) -> bool:
        return self.count > 1


def splits_tensors() -> bool:
    """Return whether the launcher is configured for FSDP (each process holds a part of every tensor)."""
    return _is_enabled("FSDP")


def refuse_launch(specs: Iterable[RunSpec]) -> None:
    """Raise UserError if the launcher's configuration does not suit these runs."""
    for name, engine in _ENGINES.items():
        if _is_enabled(name):
            raise UserError(
                f"Accelerate is configured for {engine}, which petransfer does not support; to split the tensors among "
                "the processes, use FSDP (--use_fsdp --fsdp_version 2)"
            )
    if _is_enabled("PARALLELISM_CONFIG"):
        raise UserError(
            "Accelerate's parallelism_config is not supported; leave it out, because FSDP uses all processes"
        )
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and not launched_process().shared:
        _log.warning(
            "Accelerate started only one process, as it always does with --cpu; `accelerate launch --multi_gpu` starts "
            "several, on a CPU too"
        )
    if not splits_tensors():
        return
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(f"Accelerate is configured for FSDP {version}; use fsdp_version: 2 (--fsdp_version 2)")
    if not launched_process().shared:
        raise UserError(
            "FSDP splits the tensors among processes, but there is only one process; use --processes 2 or more"
        )
    for spec in specs:
        why = _not_split(spec)
        if why:
            raise UserError(f"{spec.method.name} at {spec.method.bits} bits does not work with FSDP: {why}")


def _not_split(spec: RunSpec) -> str:
    """Return why FSDP cannot split a run's tensors. Empty if FSDP can."""
    if spec.method.bits < 16:
        return "quantised weights cannot be split; use bits: 16, or launch with --multi_gpu"
    if spec.train.optimizer != "adamw":
        return f"the state of {spec.train.optimizer} cannot be split; use train.optimizer: adamw"
    return METHODS.lookup(spec.method.name).not_split.get(spec.method.bits, "")


def _is_enabled(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1")


def launched_process() -> LaunchedProcess:
    """Return the position of this process. Without a launcher: process 0 of 1."""
    index, count = (_first(names) for names in (_INDEX, _COUNT))
    return (
        LaunchedProcess(index, count)
        if index is not None and count is not None and 0 <= index < count
        else LaunchedProcess()
    )


def _note_parent() -> None:
    global _parent
    _parent = os.getppid()


if hasattr(os, "register_at_fork"):  # not on Windows, where no process is forked
    os.register_at_fork(after_in_child=_note_parent)


def is_orphaned() -> bool:
    """Return whether the process that started this one has ended since."""
    return os.getppid() != _parent


def _first(names: tuple[str, ...]) -> int | None:
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdigit()), None)
