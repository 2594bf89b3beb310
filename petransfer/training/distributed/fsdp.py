"""FSDP2: shard a model's tensors, gradients and optimiser state among the processes of a run.

A unit is a part of the model whose tensors are gathered together, usually a layer. The settings of `accelerate config`
decide which layers form a unit, whether the gathered tensors of a unit are kept until the backward pass, and whether
shards are offloaded to the host's memory. Tensors outside of all layers, mainly the embeddings and the head, form one
more unit, the root, which stays gathered for a whole step.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from petransfer.errors import RunError, UserError
from petransfer.models.wrappers import base_model_of
from petransfer.training.batches import Tensors
from petransfer.training.out_of_memory import (
    OutOfMemory,
    enable_gradient_checkpointing,
    raising_out_of_memory,
    release_cached_memory,
)


def needs_all_processes(model: torch.nn.Module) -> bool:
    """Return whether every forward pass needs all processes, because each process holds only a part of every tensor.

    All processes must then run the same number of passes, so no process may choose the size of its micro-batches alone.
    """
    return isinstance(model, FSDPModule)


def shard_model(model: torch.nn.Module, device: torch.device, narrow: bool) -> torch.nn.Module:
    """Shard the model's tensors among all processes, in place, and return a copy on the meta device for `gather_model`.

    All processes get the values of the first process. The tensors of the other processes may be on the meta device,
    because transformers leaves them there if only one process reads the checkpoint. A GPU holds its shards and one
    whole unit at a time.

    Args:
        narrow: whether units are gathered and computed in bf16; their gradients are summed in fp32.

    Raises:
        UserError: torch is too old, or Accelerate's FSDP plugin has an unsupported setting.
    """
    if not hasattr(FSDPModule, "reset_iter_state"):  # needed to continue after running out of memory
        raise UserError(f"FSDP needs torch 2.13 or later, and this is {torch.__version__}; launch with --multi_gpu")
    if device.type == "cuda":
        gc.collect()  # free the units of an earlier run, which reference each other
    # The warning is about T5's position table. It does not matter, because transformers never changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    plugin = _plugin()
    if plugin.activation_checkpointing:
        enable_gradient_checkpointing(model)
    empty_copy = _without_numbers(model)
    is_unit = _policy(plugin, model)
    factors = {name: value.rate_factor for name, value in model.named_parameters() if hasattr(value, "rate_factor")}
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if narrow else MixedPrecisionPolicy(),
        # On a CPU the shards are in the host's memory in any case, so there is nothing to offload.
        "offload_policy": OffloadPolicy() if device.type == "cpu" else plugin.cpu_offload,
    }
    for module in reversed(list(model.modules())):  # inner modules first
        if module is model or is_unit(module):
            _share(module, device)
            # With None the root stays gathered until its backward pass, whatever the plugin sets for layers.
            keeps = None if module is model else plugin.reshard_after_forward
            unit: Any = fully_shard(module, reshard_after_forward=keeps, **options)
            unit.set_gradient_divide_factor(1.0)  # the loss is already divided by the tokens of all processes
            unit.set_force_sum_reduction_for_comms(True)
    for name, value in model.named_parameters():
        if name in factors:
            value.rate_factor = factors[name]  # type: ignore[attr-defined]
    return empty_copy


def _plugin() -> FullyShardedDataParallelPlugin:
    """Return Accelerate's FSDP plugin with the settings of the launcher. By default each layer is a unit.

    Raises:
        UserError: the plugin has an unsupported setting.
    """
    told = "FSDP_AUTO_WRAP_POLICY" in os.environ
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy=None if told else "transformer_based_wrap")
    if plugin.ignored_modules:
        raise UserError(
            "fsdp_ignored_modules is not supported: the gradients of ignored modules would not be summed; remove it"
        )
    return plugin


def _policy(plugin: FullyShardedDataParallelPlugin, model: Any) -> Callable[[torch.nn.Module], bool]:
    base = base_model_of(model)
    try:
        plugin.set_auto_wrap_policy(base)
        found: Callable[[torch.nn.Module], bool] | None = fsdp2_prepare_auto_wrap_policy(plugin, base)
    except ValueError as error:
        raise UserError(f"FSDP cannot tell the layers of {type(base).__name__}: {error}") from error
    return found or (lambda module: False)


def _without_numbers(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model with all parameters on the meta device. Tied tensors stay tied."""
    known: dict[int, Any] = {
        id(value): torch.nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
        for value in model.parameters()
    }
    return copy.deepcopy(model, known)


def _share(module: torch.nn.Module, device: torch.device) -> None:
    """Move the tensors of a unit to the device, and give all processes the values of the first process.

    Tensors of inner units are left out, because they are already sharded.
    """
    moved: dict[int, torch.Tensor] = {}
    for within in module.modules():
        for held in (within._parameters, within._buffers):
            for name, value in held.items():
                if value is not None and not isinstance(value, DTensor):
                    if id(value) not in moved:
                        moved[id(value)] = _shared(value, device)
                    held[name] = moved[id(value)]  # type: ignore[assignment]


def _shared(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    there = torch.empty_like(value, device=device) if value.is_meta else value.detach().to(device).contiguous()
    distributed.broadcast(there, 0)
    if not isinstance(value, torch.nn.Parameter):
        return there
    return torch.nn.Parameter(there, requires_grad=value.requires_grad)


def is_part(value: torch.Tensor) -> bool:
    """Return whether this process holds only a part of a tensor."""
    return isinstance(value, DTensor)


def local_part(value: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor, or the whole tensor if it is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def clip_gradients(parameters: Sequence[torch.nn.Parameter], most: float) -> torch.Tensor:
    """Clip the gradients to a norm of at most `most`, and return their norm over all processes before clipping.

    The norm is a tensor on the device; it is not read here, so that the CPU does not wait for a GPU.
    """
    gradients = [value.grad for value in parameters if value.grad is not None]
    norm = torch.nn.utils.get_total_norm([local_part(gradient) for gradient in gradients])
    if any(isinstance(gradient, DTensor) for gradient in gradients):  # one sum over processes for all tensors
        square = norm.double().square()
        distributed.all_reduce(square)
        norm = square.sqrt().to(norm.dtype)
    torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def gather_tensors(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Return whole tensors in the host's memory, gathered from all processes. All processes must call this.

    keep: whether this process needs the tensors; if not, the result is empty.
    """
    found = {}
    for name, value in tensors.items():
        full = value.full_tensor().cpu() if isinstance(value, DTensor) else value
        if keep:
            found[name] = full.detach().contiguous()
    return found


@torch.no_grad()
def copy_into(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a value into a tensor of the same shape. If the tensor is sharded, copy this process's part of the value."""
    if isinstance(tensor, DTensor):
        mine = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
        local_part(tensor).copy_(local_part(mine))
    else:
        tensor.copy_(value)


def shard_like(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the value. If the tensor is sharded and has the same shape, the returned value is sharded like it."""
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    found = torch.zeros_like(tensor, dtype=value.dtype, requires_grad=False)
    copy_into(found, value)
    return found


def gather_model(model: torch.nn.Module, empty_copy: torch.nn.Module, keep: bool) -> torch.nn.Module:
    """Fill the copy that `shard_model` returned with the model's values in the host's memory, and return it.

    All processes must call this. In processes without `keep`, the copy stays empty.
    """
    found = gather_tensors(dict(model.named_parameters()), keep)
    if keep:
        for name, value in empty_copy.named_parameters():
            filled = torch.nn.Parameter(found[name], requires_grad=value.requires_grad)
            torch.utils.swap_tensors(value, filled)  # type: ignore[no-untyped-call] # also changes tied references
    return empty_copy


@contextlib.contextmanager
def with_root_gathered(model: torch.nn.Module) -> Iterator[None]:
    """Keep the root unit gathered while the context is open.

    The root unit has the tensors outside of all layers, mainly the embeddings and the head. Use this context if a
    part of the model is called directly, for example the encoder in generation. The layers gather their tensors
    themselves. Every process must make the same calls, even if it does not need the results.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


@dataclass
class _Turns:
    """Counts the collective operations of a pass, and leaves out the first `skip` of them."""

    taken: int = 0
    skip: int = 0

    def next(self) -> bool:
        self.taken += 1
        return self.taken > self.skip


@dataclass
class _Collective:
    """A collective operation of torch, which is left out if `turns` is still skipping."""

    turns: _Turns
    function: Callable[..., Any]

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.function(output_tensor, input_tensor, *args, **kwargs) if self.turns.next() else None


class LockStep:
    """Runs the same number of passes in all processes, because in every layer each process waits for all others.

    When a process runs out of memory, the other processes still wait for the rest of its pass. Therefore this process
    repeats the pass with a single example, without the collective operations that it has already completed. It also
    runs its remaining passes with a single example. So no process waits forever, and all processes can repeat the step
    with less memory.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model: Any = model
        self._turns = _Turns()
        for unit in model.modules():
            if isinstance(unit, FSDPModule):
                unit.set_custom_all_gather(_Collective(self._turns, distributed.all_gather_single))  # type: ignore[arg-type]
                unit.set_custom_reduce_scatter(_Collective(self._turns, distributed.reduce_scatter_single))  # type: ignore[arg-type]

    def add_up(
        self, cuts: Sequence[Tensors], count: int, run_one: Callable[[Tensors, float], torch.Tensor]
    ) -> torch.Tensor:
        """Run `count` passes and return the sum of the losses of this process's micro-batches.

        Args:
            cuts: the micro-batches of this process.
            count: the number of passes, the same in all processes. Passes for which this process has no micro-batch
                run with one example of weight 0.
            run_one: runs the forward and backward pass of a micro-batch, and returns its loss times a weight.

        Raises:
            OutOfMemory: this process ran out of memory, after it let the other processes finish their passes.
            RunError: this process ran out of memory with a single example.
        """
        stand_in = {name: tensor[:1] for name, tensor in cuts[0].items()}
        passes = [*((cut, 1.0) for cut in cuts), *[(stand_in, 0.0)] * (count - len(cuts))]
        totals: list[torch.Tensor] = []
        for at, (cut, weight) in enumerate(passes):
            self._turns.taken = 0
            failed = False
            try:
                with raising_out_of_memory():
                    totals.append(run_one(cut, weight))
            except OutOfMemory:
                failed = True
            if failed:  # after the `except` block, so that the tensors of the failed pass are freed
                self._finish_passes(count - at, stand_in, run_one)
                raise OutOfMemory("out of memory in one of the processes")
        return torch.stack(totals).sum()

    def _finish_passes(self, passes: int, stand_in: Tensors, run_one: Callable[[Tensors, float], torch.Tensor]) -> None:
        """Run the remaining passes with one example of weight 0, so that the other processes can finish theirs."""
        self._model.reset_iter_state()
        release_cached_memory()
        self._turns.skip = self._turns.taken
        try:
            with raising_out_of_memory():
                for _ in range(passes):
                    self._turns.taken = 0
                    run_one(stand_in, 0.0)
                    self._turns.skip = 0
        except OutOfMemory as error:
            raise RunError("out of memory with one example at a time; take more processes or bits: 16") from error
        finally:
            self._turns.skip = 0
