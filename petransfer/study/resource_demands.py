"""The resources that a run requests from a cluster's nodes, by the planner's prediction. Imports no torch by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.memory.advice import RECIPE_OPTIONS, OptionNames
from petransfer.memory.study_memory import host_memory, predict_memory
from petransfer.recipe.run_spec import RunSpec

# Memory of a process after all imports and before a checkpoint is loaded, on the host and on a GPU. The embedded
# checkpoints and their training need little beside it. On a CPU, including data and scores, workers of the recipe
# bits-scan needed 2.9 GB at most, as counted by the system (VmHWM).
PROCESS = 2 * 2**30
ON_CARD = 2 * 2**30
ON_CPU = 3 * 2**30


@dataclass(frozen=True)
class Demands:
    """Cores, a share of one GPU, and bytes of the host's memory; 0 if nothing is requested."""

    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0


def demands_of(
    spec: RunSpec,
    card: int | None,
    threads: int,
    checkpointing: bool = False,
    force: bool = False,
    words: OptionNames = RECIPE_OPTIONS,
) -> Demands:
    """Return the resources of a run.

    Args:
        card: Memory of the smallest GPU that the run may get, in bytes; None on a CPU.
        words: Option names for messages.

    Raises:
        UserError: The run does not fit such a GPU, and `force` is not set.
    """
    cpus = max(1, threads)
    if card is None:
        return Demands(cpus, memory=ON_CPU + host_memory(spec, checkpointing))
    places = predict_memory([spec], card, checkpointing)
    if not places:  # an embedded checkpoint
        return Demands(cpus, _share(ON_CARD, card), PROCESS)
    (place,) = places
    if place.fit is None:  # no prediction is possible: request a whole GPU
        return Demands(cpus, 1.0, PROCESS)
    if not place.fit.fits and not force:
        raise UserError(f"{place.line(words)}; --force tries all the same")
    weights = sum(place.fit.memory.weights.values())
    return Demands(cpus, _share(place.fit.needed, card), PROCESS + 2 * weights)


def together(members: Sequence[Demands]) -> Demands:
    """Return the resources of a stack: one process, with no more than the sum of its runs."""
    gpus = sum(one.gpus for one in members)
    memory = sum(one.memory for one in members) - (len(members) - 1) * PROCESS
    return Demands(max(one.cpus for one in members), 1.0 if gpus > 0.5 else gpus, max(0, memory))


def _share(needed: int, card: int) -> float:
    """Return the share of one GPU, rounded up to hundredths. A share above one half counts as the whole GPU."""
    share = math.ceil(100 * needed / card) / 100
    return 1.0 if share > 0.5 else max(share, 0.01)
