"""Steps of several adapters in one pass over their common base, replayed as a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.graphed import Options
from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.batches import IGNORED, Batch, Tensors
from petransfer.training.graphs import Graphs, pad_widths
from petransfer.training.optimizer import make_optimizer, schedule_factor
from petransfer.training.stacked.layers import Stack
from petransfer.training.state import trained_tensors


class StackedStep:
    """Optimiser steps of all members of a stack, on micro-batches that are padded to one common shape.

    A member is a model with its own adapter. The members must share the output head, as they do with LoRA. The base
    must not use dropout, because each member has its own dropout, which cannot be replayed.

    Args:
        stack: The members and their common base, made with `hidden_only=True`.
        spec: Learning rate, schedule and AdamW's settings, the same for all members.
        device: The device of the stack.
        options: The way in which the step is computed.
    """

    def __init__(self, stack: Stack, spec: TrainSpec, device: torch.device, options: Options = Options()) -> None:
        self.stack, self.spec, self.device, self.options = stack, spec, device, options
        self.members = [list(trained_tensors(member).values()) for member in stack.members]
        for value in self._all():
            value.grad = torch.zeros_like(value)
        self.optimizers = [make_optimizer(member, spec) for member in stack.members]
        self._rate = torch.zeros((), device=device)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"], group["capturable"] = self._rate, device.type == "cuda"
        self._head: Any = stack.members[0].get_base_model().get_output_embeddings()
        self.totals = torch.zeros(len(self.members), device=device)
        self._weights = torch.ones(len(self.members), device=device)
        self._graphs = Graphs(device, options.replay)
        self._passes: dict[tuple[int, ...], tuple[Tensors, Callable[[], None]]] = {}
        self._update = self._graphs.of(self._clip_and_update)

    def step(self, step: int, batches: Sequence[Batch]) -> torch.Tensor:
        """Take one optimiser step of every member, and return the losses per target token, (members,), in nats.

        Args:
            step: The step's number, from 0. It determines the learning rate.
            batches: The batch of each member.
        """
        self.totals.zero_()
        tokens = torch.tensor([batch.target_tokens for batch in batches], dtype=torch.float32)
        self._weights.copy_(1 / tokens, non_blocking=True)
        size = max(len(batch.examples) for batch in batches)
        cuts = [batch.micro_batches(size)[0] for batch in batches]
        joined = _joined(cuts, self.options.multiple)
        held, run = self._pass_of(joined)
        for name, value in joined.items():
            held[name].copy_(value, non_blocking=True)
        run()
        self._rate.fill_(self.spec.learning_rate * schedule_factor(self.spec, step))
        self._update()
        return self.totals * self._weights

    def _all(self) -> list[torch.nn.Parameter]:
        return [value for member in self.members for value in member]

    def _pass_of(self, joined: Tensors) -> tuple[Tensors, Callable[[], None]]:
        key = tuple(size for value in joined.values() for size in value.shape)
        if key not in self._passes:
            held = {name: value.to(self.device, copy=True) for name, value in joined.items()}
            self._passes[key] = held, self._graphs.of(lambda: self._forward_and_backward(held))
        return self._passes[key]

    def _forward_and_backward(self, batch: Tensors) -> None:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        widths: list[Mapping[int, int]] = [{} for _ in self.members]
        hidden_btd = self.stack.run(inputs, widths)
        weight = self._head.weight
        logits_nv = functional.linear(hidden_btd.flatten(0, 1).to(weight.dtype), weight).float()
        losses_n = functional.cross_entropy(
            logits_nv, batch["labels"].flatten(), ignore_index=IGNORED, reduction="none"
        )
        totals_k = losses_n.view(len(self.members), -1).sum(1)
        torch.autograd.backward((totals_k * self._weights).sum())
        self.totals.add_(totals_k.detach())

    def _clip_and_update(self) -> None:
        for member, optimizer in zip(self.members, self.optimizers, strict=True):
            norm = torch.nn.utils.get_total_norm([value.grad for value in member if value.grad is not None])
            torch.nn.utils.clip_grads_with_norm_(member, self.spec.max_grad_norm or math.inf, norm)
            optimizer.step()
        torch._foreach_zero_([value.grad for value in self._all() if value.grad is not None])


def _joined(cuts: Sequence[Tensors], multiple: int) -> Tensors:
    """Concatenate the members' micro-batches along the batch dimension, all padded to one width."""
    joined = {}
    for name in cuts[0]:
        widest = max(cut[name].shape[1] for cut in cuts)
        filler = IGNORED if name == "labels" else 0
        rows = [functional.pad(cut[name], (0, widest - cut[name].shape[1]), value=filler) for cut in cuts]
        joined[name] = torch.cat(rows)
    return pad_widths(joined, multiple)
