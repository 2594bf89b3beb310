"""Share a run's batches and tensors among its processes. The rest of petransfer imports only from this module."""

from petransfer.training.distributed.fsdp import (
    clip_gradients,
    copy_into,
    gather_model,
    gather_tensors,
    is_part,
    local_part,
    needs_all_processes,
    shard_like,
    shard_model,
    with_root_gathered,
)
from petransfer.training.distributed.processes import Process, SingleProcess, processes_of, this_process

__all__ = [
    "Process",
    "SingleProcess",
    "clip_gradients",
    "copy_into",
    "gather_model",
    "gather_tensors",
    "is_part",
    "local_part",
    "needs_all_processes",
    "processes_of",
    "shard_like",
    "shard_model",
    "this_process",
    "with_root_gathered",
]
