"""FSDP2: shard a model's tensors, gradients and optimiser state among the processes of a run.

A unit is a part of the model whose tensors are gathered together, usually a layer. The root is the unit of all other
tensors, mainly the embeddings and the head. The root stays gathered for a whole step. `accelerate config` has the
settings of the units.
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
    """Return whether the model is sharded. Every forward pass of a sharded model needs all processes.

    All processes must run the same number of passes. No process can choose its number of micro-batches alone.
    """
    return isinstance(model, FSDPModule)


def shard_model(model: torch.nn.Module, device: torch.device, narrow: bool) -> torch.nn.Module:
    """Shard a model's tensors among all processes, in place. Return a copy on the meta device for `gather_model`.

    All processes get the values of the first process. The tensors of other processes can be on the meta device.

    Args:
        narrow: whether units are gathered and computed in bf16. Gradients are summed in fp32.

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
    empty_copy = _copy_on_meta_device(model)
    is_unit = _policy(plugin, model)
    factors = {
        name: value.learning_rate_scale
        for name, value in model.named_parameters()
        if hasattr(value, "learning_rate_scale")
    }
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
            value.learning_rate_scale = factors[name]  # type: ignore[attr-defined]
    return empty_copy


def _plugin() -> FullyShardedDataParallelPlugin:
    """Return Accelerate's FSDP plugin with the settings of the launcher. By default each layer is a unit."""
    has_policy = "FSDP_AUTO_WRAP_POLICY" in os.environ
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy=None if has_policy else "transformer_based_wrap")
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


def _copy_on_meta_device(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model with all parameters on the meta device. Tied tensors stay tied."""
    known: dict[int, Any] = {
        id(value): torch.nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
        for value in model.parameters()
    }
    return copy.deepcopy(model, known)


def _share(module: torch.nn.Module, device: torch.device) -> None:
    """Move the tensors of a unit to the device, and give all processes the values of the first process."""
    moved: dict[int, torch.Tensor] = {}
    for within in module.modules():
        for held in (within._parameters, within._buffers):
            for name, value in held.items():
                # Tensors of inner units are already sharded.
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
    """Return this process's part of a tensor. Without sharding, return the whole tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def clip_gradients(parameters: Sequence[torch.nn.Parameter], most: float) -> torch.Tensor:
    """Clip the gradients to a norm of at most `most`, and return the norm over all processes before clipping.

    The norm is a tensor on the device: the CPU does not wait for a GPU.
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
    """Return whole tensors in the host's memory, gathered from all processes.

    All processes must call this. Without `keep`, the result is empty.
    """
    found = {}
    for name, value in tensors.items():
        full = value.full_tensor().cpu() if isinstance(value, DTensor) else value
        if keep:
            found[name] = full.detach().contiguous()
    return found


@torch.no_grad()
def copy_into(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a value into a tensor of the same shape. A sharded tensor gets this process's part of the value."""
    if isinstance(tensor, DTensor):
        mine = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
        local_part(tensor).copy_(local_part(mine))
    else:
        tensor.copy_(value)


def shard_like(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a value, sharded like a tensor of the same shape. Without sharding, return the value unchanged."""
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    found = torch.zeros_like(tensor, dtype=value.dtype, requires_grad=False)
    copy_into(found, value)
    return found


def gather_model(model: torch.nn.Module, empty_copy: torch.nn.Module, keep: bool) -> torch.nn.Module:
    """Fill the copy from `shard_model` with the model's values in the host's memory, and return the copy.

    All processes must call this. Without `keep`, the copy stays empty.
    """
    found = gather_tensors(dict(model.named_parameters()), keep)
    if keep:
        for name, value in empty_copy.named_parameters():
            filled = torch.nn.Parameter(found[name], requires_grad=value.requires_grad)
            torch.utils.swap_tensors(value, filled)  # type: ignore[no-untyped-call] # also changes tied references
    return empty_copy


@contextlib.contextmanager
def with_root_gathered(model: torch.nn.Module) -> Iterator[None]:
    """Keep the root unit gathered during the `with` block.

    Use this for direct calls of a part of the model, for example the encoder in generation. Every process must make the
    same calls.
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
    """Counts the collective operations of a pass. The first `skip` operations are left out."""

    taken: int = 0
    skip: int = 0

    def next(self) -> bool:
        self.taken += 1
        return self.taken > self.skip


@dataclass
class _Collective:
    """A collective operation of torch. The operation is left out while `turns` is skipping."""

    turns: _Turns
    function: Callable[..., Any]

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.function(output_tensor, input_tensor, *args, **kwargs) if self.turns.next() else None


class LockStep:
    """Runs the same number of passes in all processes.

    A process that runs out of memory still runs its remaining passes, each with one example. No other
    process then waits forever, and all processes can repeat the step with less memory.
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
            cuts: micro-batches of this process.
            count: number of passes, equal in all processes. Passes without a micro-batch run one example of weight 0.
            run_one: function of a micro-batch and the weight of its loss. Runs the forward and backward pass. Returns
                the weighted loss.

        Raises:
            OutOfMemory: this process ran out of memory. All other processes have finished their passes.
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
        """Run the remaining passes with one example of weight 0. The other processes can then finish."""
        self._model.reset_iter_state()
        release_cached_memory()
        # In every layer, the other processes still wait for the rest of the failed pass. This process repeats the pass
        # without the collective operations that it has already completed.
        self._turns.skip = self._turns.taken
        try:
            with raising_out_of_memory():
                for _ in range(passes):
                    self._turns.taken = 0
                    run_one(stand_in, 0.0)
                    self._turns.skip = 0
        except OutOfMemory as error:
            raise RunError("out of memory with one example at a time; use more processes or bits: 16") from error
        finally:
            self._turns.skip = 0
