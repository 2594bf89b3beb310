"""Share the training steps of a run among its processes.

There are three cases: one process, processes that each hold all tensors, and processes that each hold a part of every
tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed

from petransfer.errors import UserError
from petransfer.training.batches import Tensors
from petransfer.training.distributed.collectives import agree, sum_gradients
from petransfer.training.distributed.fsdp import LockStep, needs_all_processes

# Runs the forward and backward pass of a micro-batch; multiplies its summed loss by a weight and returns the product.
RunMicroBatch = Callable[[Tensors, float], torch.Tensor]


@dataclass(frozen=True)
class Process:
    """One process of a run.

    index: number of the process, counted from 0.
    count: number of processes of the run.
    """

    device: torch.device
    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files of the run. Only the first process does."""
        return self.index == 0


def this_process(cpu: bool) -> Process:
    """Return this process with the device, index and count of Accelerate's launcher.

    Without a launcher, this process is the only process of the run.

    Args:
        cpu: whether to use the CPU on a machine with a GPU.

    Raises:
        UserError: `cpu` is true, but the program already used a GPU. Accelerate keeps the first device of a program.
    """
    # Accelerate would choose Apple's GPUs, which have no fp64. Losses and self-checks need it.
    without_gpu = cpu or not torch.cuda.is_available() or bool(parse_flag_from_env("ACCELERATE_USE_CPU"))
    state = PartialState(cpu=without_gpu)
    if cpu and state.device.type != "cpu":
        raise UserError(f"this program already trains on {state.device}; use the CPU in a new Python process")
    return Process(state.device, state.process_index, state.num_processes)


class SingleProcess:
    """A run in one process. The classes for several processes inherit from this class.

    shared: whether several processes share the run.
    shards_tensors: whether each process holds only a part of every tensor.
    """

    shared = False
    shards_tensors = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def agree(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over all processes."""
        return [float(value) for value in values]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, as a tensor on the device."""
        return value

    def run_micro_batches(self, cuts: Sequence[Tensors], run_one: RunMicroBatch, passes: int) -> torch.Tensor:
        """Run all micro-batches of this process and return the sum of their losses.

        Args:
            passes: largest number of micro-batches of a process.
        """
        total = torch.zeros((), device=self.device)
        for cut in cuts:
            total += run_one(cut, 1.0)
        return total

    def exchange(self, flags: Sequence[float], parameters: Sequence[torch.nn.Parameter]) -> list[float]:
        """Sum the gradients of `parameters` over all processes. Return the number of processes that set each flag.

        A flag is 1 if this process has set it, else 0. The first flag means that the step failed: gradients are then
        not summed.
        """
        return [float(flag) for flag in flags]

    def anywhere(self, found: dict[str, bool]) -> set[str]:
        """Return the names whose value is true in at least one process."""
        return {name for name, value in found.items() if value}


class ReplicatedProcesses(SingleProcess):
    """Processes that each hold all tensors. Gradients are summed after the backward pass."""

    shared = True

    def agree(self, values: Sequence[float]) -> list[float]:
        return agree(values, self.device)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        distributed.all_reduce(value)
        return value

    def exchange(self, flags: Sequence[float], parameters: Sequence[torch.nn.Parameter]) -> list[float]:
        present = [value.grad is not None for value in parameters]
        totals = agree([*flags, *present], self.device)
        if not totals[0]:
            sum_gradients(parameters, totals[len(flags) :])
        return totals[: len(flags)]


class ShardedProcesses(ReplicatedProcesses):
    """Processes that each hold a part of every tensor (FSDP). Gradients are summed during the backward pass."""

    shards_tensors = True

    def __init__(self, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(device)
        self._lock_step = LockStep(model)

    def run_micro_batches(self, cuts: Sequence[Tensors], run_one: RunMicroBatch, passes: int) -> torch.Tensor:
        return self._lock_step.add_up(cuts, passes, run_one)

    def exchange(self, flags: Sequence[float], parameters: Sequence[torch.nn.Parameter]) -> list[float]:
        return agree(flags, self.device)

    def anywhere(self, found: dict[str, bool]) -> set[str]:
        counts = agree(list(found.values()), self.device) if found else []
        return {name for name, count in zip(found, counts, strict=True) if count}


def processes_of(model: torch.nn.Module, process: Process) -> SingleProcess:
    """Return the object that shares the training of `model` among the processes of a run."""
    if needs_all_processes(model):
        return ShardedProcesses(process.device, model)
    return (SingleProcess if process.count == 1 else ReplicatedProcesses)(process.device)
