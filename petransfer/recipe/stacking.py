"""Which runs may be trained as one stack of adapters over one frozen base. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from petransfer.recipe.method_forms import FORMS
from petransfer.recipe.run_spec import RunSpec, TrainSpec

# Runs in a stack at most, unless told otherwise: beyond it little is won, and all of them wait for each other.
MOST_STACKED = 16


def kind(spec: RunSpec) -> RunSpec | None:
    """What runs of one stack have in common: all but seed, rank, alpha and what only the optimiser sees.

    None where a run's method is never stacked (its form says why). A base that is drawn from the seed is another base
    for every seed.
    """
    if FORMS[spec.method.name].no_stack:
        return None
    return replace(
        spec,
        method=replace(spec.method, rank=0, alpha=0.0),
        train=TrainSpec(spec.train.steps, spec.train.batch_size, 0.0),
        seed=spec.seed if spec.checkpoint.reinit != "none" else 0,
    )


def why_alone(specs: Iterable[RunSpec]) -> list[str]:
    """A line for each method among the runs that is never stacked."""
    names = dict.fromkeys(spec.method.name for spec in specs)
    return [f"{name} is not stacked: {FORMS[name].no_stack}" for name in names if FORMS[name].no_stack]
