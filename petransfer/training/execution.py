"""Settings for executing a run on a machine. Imports no torch, so that the command line starts quickly."""

from __future__ import annotations

from dataclasses import dataclass

from petransfer.errors import UserError
from petransfer.python_arguments import checked_bool, checked_integer, checked_number
from petransfer.recipe.run_spec import RunSpec

# More than the cores of any machine. Thousands of threads would end the process with a segmentation fault.
MOST_THREADS = 512


@dataclass(frozen=True)
class Execution:
    """Settings for executing a run on this machine. The settings are not part of the run id.

    Attributes:
        micro_batch: examples per forward pass. 0 means the default.
        threads: CPU threads. 0 means torch's current number.
        save_every: seconds between two saves of the training state.
        log_every: steps between two lines of metrics.jsonl.
        compile: whether the loss is compiled with `torch.compile`.
        checkpointing: whether gradient checkpointing is used, which saves memory and gives equal gradients.
        cuda_graphs: whether the steps are replayed as CUDA graphs, which makes small models faster on a GPU.

    Raises:
        UserError: a setting has the wrong type or is out of range.
    """

    micro_batch: int = 0
    threads: int = 0
    save_every: float = 60.0
    log_every: int = 50
    compile: bool = False
    checkpointing: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        checked = {
            "micro_batch": checked_integer(self.micro_batch, "micro_batch", least=0),
            "threads": checked_integer(self.threads, "threads", 0, MOST_THREADS),
            "save_every": checked_number(self.save_every, "save_every"),
            "log_every": checked_integer(self.log_every, "log_every"),
            "compile": checked_bool(self.compile, "compile"),
            "checkpointing": checked_bool(self.checkpointing, "gradient_checkpointing"),
            "cuda_graphs": checked_bool(self.cuda_graphs, "cuda_graphs"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def refuse_small_batch(batch_size: int, processes: int) -> None:
    """Raise UserError if a batch has fewer examples than there are processes."""
    if batch_size < processes:
        raise UserError(
            f"a batch of {batch_size} cannot be shared by {processes} processes; use {batch_size} processes or fewer"
        )


def check_graphs(spec: RunSpec, *, checkpointing: bool, processes: int) -> None:
    """Check whether a run can use CUDA graphs on a GPU.

    Args:
        checkpointing: whether gradient checkpointing is used.
        processes: number of processes of the run.

    Raises:
        UserError: The run cannot use CUDA graphs.
    """
    reason = ""
    if spec.method.bits < 16:
        reason = f"at {spec.method.bits} bits"
    elif spec.method.name in ("prompt", "prefix"):
        reason = f"with method: {spec.method.name}"
    elif spec.train.optimizer != "adamw":
        reason = f"with optimizer: {spec.train.optimizer}"
    elif checkpointing:
        reason = "with gradient checkpointing"
    elif processes > 1:
        reason = "with several processes for one run"
    if reason:
        raise UserError(f"CUDA graphs do not work {reason}; leave out --cuda-graphs")


def refuse_missing_gpu(on_gpu: bool) -> None:
    """Raise UserError if there is no GPU for CUDA graphs."""
    if not on_gpu:
        raise UserError("CUDA graphs need a GPU; leave out --cuda-graphs")
