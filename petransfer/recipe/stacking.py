"""Decide which runs can be trained as one stack: several adapters on one frozen base. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec, TrainSpec

# The largest stack by default. Larger ones gain little speed, and all runs of a stack end together.
MOST_STACKED = 16


def stack_key(spec: RunSpec) -> RunSpec | None:
    """Return a spec that is equal for all runs of one stack; None for a run that is never stacked.

    Runs of one stack may differ in seed, rank, alpha and the optimiser's settings. If base weights are drawn from
    the seed, each seed has another base. A run is never stacked if its method declares a reason, if it has early
    stopping, because it then ends at its own step, or if it has packing.
    """
    if METHODS.lookup(spec.method.name).not_stacked or spec.train.early_stopping or spec.train.packing:
        return None
    return replace(
        spec,
        method=replace(spec.method, rank=0, alpha=0.0),
        train=TrainSpec(spec.train.steps, spec.train.batch_size, 0.0),
        seed=spec.seed if spec.checkpoint.reinit != "none" else 0,
    )


def reasons_not_stacked(specs: Iterable[RunSpec]) -> list[str]:
    """Return one line for each reason why some of the runs are never stacked."""
    specs = list(specs)
    names = dict.fromkeys(spec.method.name for spec in specs)
    reasons = [f"{name} is not stacked: {reason}" for name in names if (reason := METHODS.lookup(name).not_stacked)]
    if any(spec.train.early_stopping for spec in specs):
        reasons.append("runs with early_stopping are not stacked: each of them ends at a step of its own")
    if any(spec.train.packing for spec in specs):
        reasons.append("runs with packing are not stacked: a stack pads the examples of its runs to one length")
    return reasons
