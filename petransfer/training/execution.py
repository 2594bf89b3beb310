"""How a run is carried out on a machine. Imports no torch, so that the command line can say it at once."""

from __future__ import annotations

from dataclasses import dataclass

from petransfer.errors import UserError


@dataclass(frozen=True)
class Execution:
    """How a run is carried out on this machine; none of it is part of the run id.

    micro_batch: examples per forward pass, 0 for the default. threads: CPU threads, 0 to leave as they are.
    save_every: seconds between states. log_every: steps between lines of metrics. checkpointing: activations of a layer
    are computed again in the backward pass rather than kept, which gives the same gradient.
    """

    micro_batch: int = 0
    threads: int = 0
    save_every: float = 60.0
    log_every: int = 50
    compile: bool = False
    checkpointing: bool = False


def refuse_small_batch(batch_size: int, processes: int) -> None:
    """Raises UserError where a batch has too few examples for each process to get one."""
    if batch_size < processes:
        raise UserError(
            f"a batch of {batch_size} cannot be shared by {processes} processes; take --processes {batch_size} or fewer"
        )
