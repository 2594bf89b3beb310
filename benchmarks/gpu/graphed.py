"""Training steps that are replayed as CUDA graphs.

A graph launches about a thousand kernels at once and needs inputs of a fixed shape. Therefore batches are padded to a
few shapes, with one graph for each shape. On a CPU the same functions are called directly; the tests compare them with
the training loop in this way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.batches import IGNORED, Batch, Tensors
from petransfer.training.loop import learning_rate_factor, make_optimizer
from petransfer.training.losses import token_loss
from petransfer.training.state import trained_tensors

LossFunction = Callable[[torch.nn.Module, Tensors], torch.Tensor]

# Number of calls before a function is captured. They create cuBLAS handles, autograd buffers and the optimiser's state,
# which a graph must not create.
WARM_CALLS = 2


class Graphs:
    """The stream and the memory that the CUDA graphs of one step share. The graphs run one after another.

    Args:
        device: The device of the step. On a CPU, functions are called directly.
        replay: Whether functions are captured and replayed on a GPU. If False, they are called directly there too.
    """

    def __init__(self, device: torch.device, replay: bool) -> None:
        on_card = replay and device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_card else None
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
            with torch.cuda.stream(self._stream):
                self._function()
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # `thread_local` allows other threads to allocate pinned memory during the capture.
            with torch.cuda.graph(self._graph, self._pool, self._stream, capture_error_mode="thread_local"):
                self._function()
        self._graph.replay()


@dataclass(frozen=True)
class Options:
    """The way in which a step is computed.

    Attributes:
        multiple: Inputs and targets are padded to a width that is a multiple of this, so that few shapes occur.
        replay: Whether the step is replayed as a CUDA graph.
        compile: The backend of torch.compile for the forward and backward pass, such as `inductor`; '' for none.
    """

    multiple: int = 16
    replay: bool = True
    compile: str = ""


class StaticStep:
    """Optimiser steps of one model on batches that are padded to few shapes.

    The training loop gives equal losses and weights, except for rounding and dropout. The random numbers of dropout
    depend on the padded shape.

    Args:
        model: The model with its trained tensors on `device`.
        spec: Learning rate, schedule, clipping and AdamW's settings. Only `optimizer: adamw` can be replayed.
        device: The device of the model.
        options: The way in which the step is computed.
        loss_function: Computes the summed loss of a micro-batch in nats.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        spec: TrainSpec,
        device: torch.device,
        options: Options = Options(),
        loss_function: LossFunction = token_loss,
    ) -> None:
        self.model, self.spec, self.device, self.options = model.train(), spec, device, options
        self.parameters = list(trained_tensors(model).values())
        for value in self.parameters:
            value.grad = torch.zeros_like(value)
        self.optimizer = make_optimizer(model, spec)
        self._scales = [float(group["scale"]) for group in self.optimizer.param_groups]
        self._rates = torch.zeros(len(self._scales), device=device)
        self._base_rates = torch.tensor([spec.learning_rate * scale for scale in self._scales], device=device)
        # The learning rate is a tensor on the device, so that a replayed graph reads its present value.
        for at, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self._rates[at]
            group["capturable"] = device.type == "cuda"
        self.loss_function = loss_function
        if options.compile:
            self.loss_function = torch.compile(loss_function, dynamic=False, backend=options.compile)
        self.total = torch.zeros((), device=device)
        self.norm = torch.zeros((), device=device)
        self._weight = torch.ones((), device=device)
        self._graphs = Graphs(device, options.replay)
        self._passes: dict[tuple[int, ...], tuple[Tensors, Callable[[], None]]] = {}
        self._update = self._graphs.of(self._clip_and_update)

    def step(self, step: int, batch: Batch, cuts: Sequence[Tensors]) -> torch.Tensor:
        """Take one optimiser step and return the loss per target token in nats, as a tensor on the device.

        Args:
            step: The step's number, from 0. It determines the learning rate.
            batch: The whole batch, from which the number of target tokens is taken.
            cuts: The micro-batches of the batch, as `Batch.micro_batches` makes them.
        """
        self.total.zero_()
        self._weight.fill_(1 / batch.target_tokens)
        for cut in cuts:
            padded = pad_widths(cut, self.options.multiple)
            held, run = self._pass_of(padded)
            for name, value in padded.items():
                held[name].copy_(value, non_blocking=True)
            run()
        torch.mul(self._base_rates, learning_rate_factor(self.spec, step), out=self._rates)
        self._update()
        return self.total / batch.target_tokens

    def _pass_of(self, batch: Tensors) -> tuple[Tensors, Callable[[], None]]:
        """Return the fixed input tensors for the batch's shape, and the forward and backward pass that reads them."""
        key = tuple(size for value in batch.values() for size in value.shape)
        if key not in self._passes:
            held = {name: value.to(self.device, copy=True) for name, value in batch.items()}
            self._passes[key] = held, self._graphs.of(lambda: self._forward_and_backward(held))
        return self._passes[key]

    def _forward_and_backward(self, batch: Tensors) -> None:
        loss = self.loss_function(self.model, batch)
        torch.autograd.backward(loss * self._weight)
        self.total.add_(loss.detach())

    def _clip_and_update(self) -> None:
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.spec.max_grad_norm or math.inf, norm)
        self.norm.copy_(norm)
        self.optimizer.step()
        torch._foreach_zero_(gradients)


def pad_widths(batch: Tensors, multiple: int) -> Tensors:
    """Pad every tensor of a micro-batch on the right to a width that is a multiple of `multiple`.

    A tensor that already has such a width is returned unchanged, so that it stays in pinned memory. Labels are padded
    with `IGNORED`, all other tensors with 0.
    """
    padded = {}
    for name, value in batch.items():
        missing = -value.shape[1] % multiple
        filler = IGNORED if name == "labels" else 0
        padded[name] = functional.pad(value, (0, missing), value=filler) if missing else value
    return padded
