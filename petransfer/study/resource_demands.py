"""What a run asks of a cluster's nodes, from what the planner foresees. Imports no torch before it is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.memory.advice import RECIPE_OPTIONS, OptionNames
from petransfer.memory.study_memory import host_memory, predict_memory
from petransfer.recipe.run_spec import RunSpec

# A process that has imported everything holds so much before it loads a checkpoint, on the host and on a card; the
# embedded checkpoints and what training them takes are small beside it. On a CPU, data and scores among it, workers of
# the recipe bits-scan came to 2.9 GB at most, as the system counts (VmHWM).
PROCESS = 2 * 2**30
ON_CARD = 2 * 2**30
ON_CPU = 3 * 2**30


@dataclass(frozen=True)
class Demands:
    """Cores, a share of one card, and bytes of the host's memory; 0 where nothing is demanded."""

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
    """Return what a run needs. card: bytes of the smallest card it may get, None on a CPU. words: option names.

    Raises:
        UserError: it does not fit such a card, and is not forced to.
    """
    cpus = max(1, threads)
    if card is None:
        return Demands(cpus, memory=ON_CPU + host_memory(spec, checkpointing))
    places = predict_memory([spec], card, checkpointing)
    if not places:  # embedded
        return Demands(cpus, _share(ON_CARD, card), PROCESS)
    (place,) = places
    if place.fit is None:  # nothing could be foreseen: a card of its own
        return Demands(cpus, 1.0, PROCESS)
    if not place.fit.fits and not force:
        raise UserError(f"{place.line(words)}; --force tries all the same")
    weights = sum(place.fit.memory.weights.values())
    return Demands(cpus, _share(place.fit.needed, card), PROCESS + 2 * weights)


def together(members: Sequence[Demands]) -> Demands:
    """What runs take as one stack: one process, and no more than each of them would by itself."""
    gpus = sum(one.gpus for one in members)
    memory = sum(one.memory for one in members) - (len(members) - 1) * PROCESS
    return Demands(max(one.cpus for one in members), 1.0 if gpus > 0.5 else gpus, max(0, memory))


def _share(needed: int, card: int) -> float:
    """Of one card, in hundredths, rounded up; more than a half leaves no room for another."""
    share = math.ceil(100 * needed / card) / 100
    return 1.0 if share > 0.5 else max(share, 0.01)
