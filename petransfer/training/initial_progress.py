"""The progress with which a training loop begins: from the newest training state, or of a new run."""

from __future__ import annotations

from pathlib import Path

import torch

from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.execution import Execution
from petransfer.training.out_of_memory import default_micro_batch, default_token_budget
from petransfer.training.state import Progress, newest_progress


def resumed_progress(folder: Path, identity: str, execution: Execution, shards_tensors: bool) -> Progress | None:
    """Return the progress in the newest training state. None without a state.

    A micro-batch that was halved stays small, but the user can ask for an even smaller one.

    Args:
        folder: folder of the training states.
        identity: text that identifies the run. A state with another text is ignored.
        shards_tensors: whether the tensors of the run are sharded over several processes.
    """
    progress = newest_progress(folder, identity)
    if progress is not None:
        progress.micro_batch = min(progress.micro_batch, execution.micro_batch or progress.micro_batch)
        # The state can be from a run whose tensors were not sharded; see `new_progress`.
        progress.token_budget = 0 if shards_tensors else progress.token_budget
    return progress


def new_progress(
    spec: TrainSpec, execution: Execution, device: torch.device, shards_tensors: bool, skips_padding: bool
) -> Progress:
    """Return the progress of a run that begins at its first step.

    Args:
        shards_tensors: whether the tensors of the run are sharded over several processes.
        skips_padding: whether padding is left out of the forward pass, so that it needs no memory.
    """
    micro_batch = execution.micro_batch or default_micro_batch(spec.batch_size, device, skips_padding)
    # A token budget would make the number of passes depend on the lengths of a process's examples. With sharded tensors
    # all processes must run the same number of passes, so there is no budget.
    unbounded = execution.micro_batch or shards_tensors
    budget = 0 if unbounded else default_token_budget(device, skips_padding)
    return Progress(micro_batch=micro_batch, threads=execution.threads, token_budget=budget)
