"""Decide which runs can be trained as one stack: several adapters on one frozen base model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec, TrainSpec

# The default for the largest number of runs in a stack. Larger stacks gain little speed, and a run has no result before
# its whole stack has finished.
MOST_STACKED = 16


def stack_key(spec: RunSpec) -> RunSpec | None:
    """Return a key that is equal for all runs that can be trained in one stack. None: the run is never stacked.

    Runs of one stack can differ in rank, alpha, the optimiser's settings and the seed.
    """
    # all runs of a stack end at the same step, so early stopping is not possible
    if METHODS.lookup(spec.method.name).not_stacked or spec.train.early_stopping or spec.train.packing:
        return None
    # random weights and the random embeddings of added tokens depend on the seed, so each seed has its own base model
    own_base = spec.checkpoint.reinit != "none" or bool(spec.checkpoint.added_tokens)
    return replace(
        spec,
        method=replace(spec.method, rank=0, alpha=0.0),
        train=TrainSpec(spec.train.steps, spec.train.batch_size, 0.0),
        seed=spec.seed if own_base else 0,
    )


def reasons_not_stacked(specs: Iterable[RunSpec]) -> list[str]:
    """Return the reasons why some of the runs are never stacked, one line per reason."""
    specs = list(specs)
    names = dict.fromkeys(spec.method.name for spec in specs)
    reasons = [
        f"{name} is not stacked, because {reason}" for name in names if (reason := METHODS.lookup(name).not_stacked)
    ]
    if any(spec.train.early_stopping for spec in specs):
        reasons.append("runs with early_stopping are not stacked: each of them ends at a step of its own")
    if any(spec.train.packing for spec in specs):
        reasons.append("runs with packing are not stacked: a stack pads the examples of its runs to one length")
    return reasons
