"""The cores, GPU share and memory that a run requests from a cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.memory.advice import RECIPE_OPTIONS, OptionNames
from petransfer.memory.study_memory import host_memory, predict_memory
from petransfer.recipe.run_spec import RunSpec

# Bytes that a process needs after all imports, before a checkpoint is loaded: PROCESS on the host, ON_CARD on a GPU.
# Embedded checkpoints and their training need little more. ON_CPU also includes data and scores: with the recipe
# bits-scan, workers on a CPU needed 2.9 GB at most, as counted by the system (VmHWM).
PROCESS = 2 * 2**30
ON_CARD = 2 * 2**30
ON_CPU = 3 * 2**30


@dataclass(frozen=True)
class Resources:
    """The resources of one task. 0: nothing is requested.

    Attributes:
        cpus: Number of cores.
        gpus: Share of one GPU, from 0 to 1.
        memory: Bytes of the host's memory.
    """

    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0


def resources_of(
    spec: RunSpec,
    card: int | None,
    threads: int,
    checkpointing: bool = False,
    force: bool = False,
    words: OptionNames = RECIPE_OPTIONS,
) -> Resources:
    """Return the resources that a run requests.

    Args:
        card: The memory of the smallest GPU in bytes. None: run on a CPU.
        threads: CPU threads of the run. 0 requests one core.
        checkpointing: Whether gradient checkpointing is on.
        force: Request a GPU even if the run does not fit.
        words: The names of options in error messages.

    Raises:
        UserError: The run does not fit the GPU, and `force` is False.
    """
    cpus = max(1, threads)
    if card is None:
        return Resources(cpus, memory=ON_CPU + host_memory(spec, checkpointing))
    places = predict_memory([spec], card, checkpointing)
    if not places:  # an embedded checkpoint
        return Resources(cpus, _share(ON_CARD, card), PROCESS)
    (place,) = places
    if place.fit is None:  # no prediction is possible: request a whole GPU
        return Resources(cpus, 1.0, PROCESS)
    if not place.fit.fits and not force:
        raise UserError(f"{place.line(words)}; --force starts the run anyway")
    weights = sum(place.fit.memory.weights.values())
    return Resources(cpus, _share(place.fit.needed, card), PROCESS + 2 * weights)


def stack_resources(members: Sequence[Resources]) -> Resources:
    """Return the resources of a stack, whose runs are trained in one process."""
    gpus = sum(one.gpus for one in members)
    # the memory of the process itself counts once
    memory = sum(one.memory for one in members) - (len(members) - 1) * PROCESS
    return Resources(max(one.cpus for one in members), 1.0 if gpus > 0.5 else gpus, max(0, memory))


def _share(needed: int, card: int) -> float:
    """Return bytes as a share of one GPU: 0.01 to 0.5, or 1 for a larger share."""
    share = math.ceil(100 * needed / card) / 100
    return 1.0 if share > 0.5 else max(share, 0.01)
