"""Which runs may be trained as one stack of adapters over one frozen base. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec, TrainSpec

# Runs in a stack at most, unless told otherwise: beyond it little is won, and all of them wait for each other.
MOST_STACKED = 16


def kind(spec: RunSpec) -> RunSpec | None:
    """What runs of one stack have in common: all but seed, rank, alpha and what only the optimiser sees.

    None where a run is never stacked: its method's file says why, or it stops early, at a step of its own. A base that
    is drawn from the seed is another base for every seed.
    """
    if METHODS.lookup(spec.method.name).not_stacked or spec.train.early_stopping:
        return None
    return replace(
        spec,
        method=replace(spec.method, rank=0, alpha=0.0),
        train=TrainSpec(spec.train.steps, spec.train.batch_size, 0.0),
        seed=spec.seed if spec.checkpoint.reinit != "none" else 0,
    )


def why_alone(specs: Iterable[RunSpec]) -> list[str]:
    """Say in one line for each reason why some of the runs are never stacked."""
    specs = list(specs)
    names = dict.fromkeys(spec.method.name for spec in specs)
    reasons = [f"{name} is not stacked: {reason}" for name in names if (reason := METHODS.lookup(name).not_stacked)]
    if any(spec.train.early_stopping for spec in specs):
        reasons.append("runs with early_stopping are not stacked: each of them ends at a step of its own")
    return reasons
