"""Decide whether a run needs gradient checkpointing to fit a GPU."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace

import torch

from petransfer.memory.study_memory import needs_checkpointing
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.launched_processes import splits_tensors
from petransfer.training.execution import Execution

logger = logging.getLogger(__name__)


def with_needed_checkpointing(spec: RunSpec, execution: Execution, device: torch.device) -> Execution:
    """Return `execution`, with gradient checkpointing turned on and CUDA graphs off if GPU memory is short."""
    card = None if execution.checkpointing or splits_tensors() else card_of(device)
    if card is None:
        return execution
    # Runs that differ only in these fields need the same memory, so that one prediction serves all of them.
    anyone = replace(spec, seed=0, train=replace(spec.train, steps=1, learning_rate=1.0))
    needed = _needed(anyone, card)
    if needed and execution.cuda_graphs:
        logger.warning("the run needs gradient checkpointing to fit the card, so it is trained without CUDA graphs")
    return replace(execution, checkpointing=needed, cuda_graphs=execution.cuda_graphs and not needed)


def card_of(device: torch.device) -> int | None:
    """Return the memory of a GPU in bytes. None for a CPU."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


_needed = functools.lru_cache(maxsize=64)(needs_checkpointing)
