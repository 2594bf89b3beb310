"""Which runs may be trained as one stack of adapters over one frozen base. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from petransfer.recipe.spec import RunSpec, TrainSpec

# Runs in a stack at most, unless told otherwise: beyond it little is won, and all of them wait for each other.
MOST_STACKED = 16


def kind(spec: RunSpec) -> RunSpec | None:
    """What runs of one stack have in common: all but seed, rank, alpha and what only the optimiser sees.

    None where a run is never stacked: all its weights are trained. A base that is drawn from the seed is another base
    for every seed.
    """
    if spec.method.name != "lora":
        return None
    return replace(
        spec,
        method=replace(spec.method, rank=0, alpha=0.0),
        train=TrainSpec(spec.train.steps, spec.train.batch_size, 0.0),
        seed=spec.seed if spec.checkpoint.reinit != "none" else 0,
    )
