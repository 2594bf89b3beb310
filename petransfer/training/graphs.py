"""Training steps that a GPU replays as CUDA graphs.

A small model keeps a GPU idle most of the time, because launching a kernel takes longer than the kernel itself. A CUDA
graph launches all kernels of a pass at once. It needs inputs of a fixed shape, so batches are padded to a few widths,
with one graph for each shape.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

import petransfer.models.bitsandbytes_import  # noqa: F401 - must be imported before peft

# isort: split
from peft.tuners.trainable_tokens import TrainableTokensLayer

from petransfer.models.lengths import positions
from petransfer.models.wrappers import base_model_of
from petransfer.training.batches import IGNORED, Batch, Tensors
from petransfer.training.losses import LossFunction

# Number of calls before a function is captured. They create cuBLAS handles, autograd buffers and the optimiser's state,
# which a graph must not create.
WARM_CALLS = 2

# Inputs and targets are padded to a multiple of this width.
WIDTH = 16

# The largest number of shapes with a graph of their own. Batches of further shapes are computed without a graph.
MOST_GRAPHS = 128


class NotCaptured(Exception):
    """A pass could not be captured as a CUDA graph. The weights are unchanged, but gradients can be incomplete."""


class Graphs:
    """The stream and the memory that the CUDA graphs of one model share. The graphs run one after another.

    Args:
        device: the device of the model. On a CPU, functions are called directly.
        replay: whether functions are captured and replayed on a GPU. If False, they are called directly there too.
    """

    def __init__(self, device: torch.device, replay: bool = True) -> None:
        on_card = replay and device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_card else None  # type: ignore[no-untyped-call]
        self.pool: Any = torch.cuda.graph_pool_handle() if on_card else None

    def of(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return a function that replays `function` as a CUDA graph.

        `function` must read and write the same tensors in every call, and must never wait for the GPU.
        """
        return function if self.stream is None else _Replayed(function, self.stream, self.pool)


class _Replayed:
    """A function that becomes a CUDA graph.

    The first `WARM_CALLS` calls run the function directly. The next call captures it as a graph. This call and all
    later calls replay the graph.
    """

    def __init__(self, function: Callable[[], None], stream: torch.cuda.Stream, pool: Any) -> None:
        self._function, self._stream, self._pool = function, stream, pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self) -> None:
        self._calls += 1
        if self._calls <= WARM_CALLS:
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    self._function()
            finally:
                torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph, stream, collects = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), gc.isenabled()
        gc.disable()  # no graph of another model may be destroyed during a capture
        try:
            # `thread_local` allows other threads to allocate pinned memory during the capture.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                self._function()
        except RuntimeError as error:
            torch.cuda.set_stream(stream)
            # An operation that fails makes the end of the capture fail, too. The first error names the cause.
            cause = error.__context__ or error
            raise NotCaptured(str(cause).partition("\n")[0]) from error
        finally:
            if collects:
                gc.enable()
        return graph


class GraphedStep:
    """The forward and backward passes and the optimiser's update of one model, on batches padded to few shapes.

    The result is that of the training loop without graphs, except for rounding and dropout. The random numbers of
    dropout depend on the padded shape.

    Args:
        model: the model with its trained tensors on `device`.
        optimizer: AdamW of PyTorch, with or without a state. A group's `scale` multiplies its learning rate.
        loss_function: computes the summed loss of a micro-batch in nats.
        max_grad_norm: the gradients are clipped to this norm. 0: they are not clipped.
        width: inputs and targets are padded to a multiple of this width.
        replay: whether the step is replayed as CUDA graphs on a GPU. If False, it is computed directly.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        loss_function: LossFunction,
        max_grad_norm: float,
        *,
        width: int = WIDTH,
        replay: bool = True,
    ) -> None:
        self.model, self.optimizer, self.device, self.width = model, optimizer, device, width
        self.loss_function, self._max_grad_norm = loss_function, max_grad_norm or math.inf
        self.parameters = [value for group in optimizer.param_groups for value in group["params"]]
        for value in self.parameters:
            value.grad = torch.zeros_like(value)
        self._scales = torch.tensor([float(group["scale"]) for group in optimizer.param_groups], device=device)
        self._rates = torch.zeros_like(self._scales)
        # The learning rate is a tensor on the device, so that a replayed graph reads its present value.
        for at, group in enumerate(optimizer.param_groups):
            group["lr"] = self._rates[at]
            group["capturable"] = device.type == "cuda"
        self._total = torch.zeros((), device=device)
        self._norm = torch.zeros((), device=device)
        self._weight = torch.ones((), device=device)
        config = getattr(base_model_of(model), "config", None)
        self._positions = positions(config) if hasattr(config, "model_type") else None
        self._rows = [layer for layer in model.modules() if isinstance(layer, TrainableTokensLayer)]
        for layer in self._rows:
            layer.get_merged_weights = _merged_rows(layer, device)
        self._graphs = Graphs(device, replay)
        self._passes: dict[tuple[int, ...], tuple[Tensors, Callable[[], None]]] = {}
        self._update = self._graphs.of(self._clip_and_update)

    def accumulate(self, batch: Batch, cuts: Sequence[Tensors]) -> torch.Tensor:
        """Add the gradient of a batch to `grad` of the trained tensors.

        Args:
            batch: the whole batch, from which the number of target tokens is taken.
            cuts: the micro-batches of the batch, as `Batch.micro_batches` makes them.

        Returns:
            The loss in nats, summed over the target tokens of the batch, as a tensor on the device.
        """
        self._total.zero_()
        self._weight.fill_(1 / batch.target_tokens)
        for cut in cuts:
            padded = self.pad(cut)
            held, run = self._pass_of(padded)
            for name, value in padded.items():
                held[name].copy_(value, non_blocking=True)
            run()
        return self._total.clone()

    def pad(self, batch: Tensors) -> Tensors:
        """Pad a micro-batch to the widths of the graphs, as far as the model has positions."""
        return pad_widths(batch, self.width, self._positions)

    def update(self, learning_rate: float) -> torch.Tensor:
        """Clip the gradients, apply them and set them to zero. Return their norm before clipping."""
        torch.mul(self._scales, learning_rate, out=self._rates)
        self._update()
        return self._norm.clone()

    def close(self) -> None:
        """Free the memory of the graphs. The model and the optimiser can then be used without them."""
        self._passes.clear()
        self._update = self._clip_and_update
        for layer in self._rows:
            layer.__dict__.pop("get_merged_weights", None)
        self.optimizer.zero_grad(set_to_none=True)

    def _pass_of(self, batch: Tensors) -> tuple[Tensors, Callable[[], None]]:
        """Return the fixed input tensors for the batch's shape, and the forward and backward pass that reads them."""
        key = tuple(size for value in batch.values() for size in value.shape)
        if key not in self._passes:
            if len(self._passes) >= MOST_GRAPHS:
                held = {name: value.to(self.device) for name, value in batch.items()}
                return held, lambda: self._forward_and_backward(held)
            held = {name: value.to(self.device, copy=True) for name, value in batch.items()}
            self._passes[key] = held, self._graphs.of(lambda: self._forward_and_backward(held))
        return self._passes[key]

    def _forward_and_backward(self, batch: Tensors) -> None:
        loss = self.loss_function(self.model, batch)
        torch.autograd.backward(loss * self._weight)
        self._total.add_(loss.detach())

    def _clip_and_update(self) -> None:
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self._max_grad_norm, norm)
        self._norm.copy_(norm)
        self.optimizer.step()
        torch._foreach_zero_(gradients)


def _merged_rows(layer: Any, device: torch.device) -> Callable[[Sequence[str]], torch.Tensor]:
    """Return a `get_merged_weights` for a layer. peft's own function copies the token ids to the GPU in every pass."""
    ids = {name: torch.tensor(found, device=device) for name, found in layer.token_indices.items()}

    def merged(active: Sequence[str]) -> torch.Tensor:
        weight: torch.Tensor = layer.base_layer.weight
        for name in active:
            weight = weight.index_copy(0, ids[name], layer.trainable_tokens_delta[name].to(weight))
        return weight

    return merged


def pad_widths(batch: Tensors, multiple: int, most: int | None = None) -> Tensors:
    """Pad every tensor of a micro-batch on the right to a width that is a multiple of `multiple`.

    A tensor that already has such a width is returned unchanged, so that it stays in pinned memory. The same holds if
    the width would be larger than `most`. Labels are padded with `IGNORED`, all other tensors with 0.
    """
    padded = {}
    for name, value in batch.items():
        missing = -value.shape[1] % multiple
        if most is not None and value.shape[1] + missing > most:
            missing = 0
        filler = IGNORED if name == "labels" else 0
        padded[name] = functional.pad(value, (0, missing), value=filler) if missing else value
    return padded
