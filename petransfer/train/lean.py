"""The same loss and gradients on a CPU with less work: for a small model most of a step is not the model's own.

Three things are left out. A LoRA pair is folded into its weight once a step, and its gradient is taken from that of the
weight. The embeddings of which peft trains some rows are put together once a step, not at each use, and only those rows
get a gradient. The head reads no padding and its logits never leave the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import TrainableTokensWrapper
from torch.nn import functional

from petransfer.train.batches import IGNORED, Tensors
from petransfer.train.losses import PLAIN_HEADS
from petransfer.train.packed import can_pack, draws, packed_hidden
from petransfer.train.sharded import is_split

# Bytes of logits that are made at once: they stay in a core's second cache.
AT_ONCE = 2**20


@dataclass(frozen=True)
class _Pair:
    """A LoRA pair on a frozen weight. folded (out, in) is the weight as it acts, with a gradient of its own."""

    layer: Any
    base: torch.Tensor
    down: torch.nn.Parameter
    up: torch.nn.Parameter
    scale: float
    bias: torch.Tensor | None
    folded: torch.Tensor

    @torch.no_grad()
    def fold(self) -> None:
        torch.addmm(self.base, self.up, self.down, alpha=self.scale, out=self.folded)
        self.folded.grad = None

    @torch.no_grad()
    def unfold(self) -> None:
        gradient, self.folded.grad = self.folded.grad, None
        if gradient is not None:
            _add_gradient(self.up, torch.mm(gradient, self.down.t()).mul_(self.scale))
            _add_gradient(self.down, torch.mm(self.up.t(), gradient).mul_(self.scale))


@dataclass(frozen=True)
class _Rows:
    """Embeddings of which some rows are trained. whole (v, d): as they act; place (v,): of each piece, or -1."""

    trained: torch.nn.Parameter
    ids: torch.Tensor
    whole: torch.Tensor
    place: torch.Tensor


@dataclass(frozen=True)
class Judged:
    """Of the positions that labels ask for, at (n,) in the flattened batch, each (n,).

    wanted, rival: the label's logit and the largest other, whose piece is rival_id. log_prob: of the label, in nats.
    largest: of all logits' sizes.
    """

    at: torch.Tensor
    wanted: torch.Tensor
    log_prob: torch.Tensor
    rival: torch.Tensor
    rival_id: torch.Tensor
    largest: torch.Tensor


def _judge(logits_nv: torch.Tensor, wanted_n1: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Overwrites the logits."""
    wanted_n = logits_nv.gather(1, wanted_n1).squeeze(1)
    least_n, most_n = logits_nv.aminmax(dim=1)
    logits_nv.scatter_(1, wanted_n1, -torch.inf)
    rival_n, rival_id_n = logits_nv.max(1)
    others_n = logits_nv.sub_(most_n[:, None]).exp_().sum(1)
    log_prob_n = wanted_n - most_n - (others_n + (wanted_n - most_n).exp()).log()
    return wanted_n, log_prob_n, rival_n, rival_id_n, torch.maximum(most_n.abs(), least_n.abs())


class Lean:
    """What of a model can be done with less work; `step` is open while a batch's gradient is gathered.

    Where nothing can, as on a GPU or at fewer bits, `usable` is False. scoring: no dropout is drawn, so that padding
    can be left out (`packs`) of models that train with it too.
    """

    def __init__(self, model: torch.nn.Module, *, scoring: bool = False) -> None:
        base: Any = model
        base = base.get_base_model() if hasattr(base, "get_base_model") else base
        self._base = base
        self._head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        self.packs = False
        self.usable = _plain(model) and getattr(getattr(base, "config", None), "model_type", None) in PLAIN_HEADS
        if not self.usable:
            return
        self.packs = can_pack(base) and (scoring or not draws(base))
        self._pairs = [_pair(module) for module in model.modules() if _foldable(module)]
        wrappers = [module for module in model.modules() if isinstance(module, TrainableTokensWrapper)]
        self._lookups = [module for module in wrappers if module is not self._head]
        self._rows = _rows(wrappers) if wrappers else None
        head = self._head.token_adapter.base_layer if isinstance(self._head, TrainableTokensWrapper) else self._head
        self.usable = type(head) is torch.nn.Linear and (not wrappers or self._rows is not None)
        self._weight: Any = getattr(head, "weight", None)
        self._bias = getattr(head, "bias", None)

    @contextlib.contextmanager
    def step(self) -> Iterator[Callable[[torch.nn.Module, Tensors], torch.Tensor]]:
        """Gives the loss to use; when it closes, every trained tensor has its gradient."""
        patched = [(pair.layer, _linear(pair.folded, pair.bias)) for pair in self._pairs]
        if self._rows is not None:
            with torch.no_grad():
                self._rows.whole[self._rows.ids] = self._rows.trained
            patched += [(module, _lookup(self._rows)) for module in self._lookups]
        patched.append((self._head, lambda hidden, *_: hidden))
        for pair in self._pairs:
            pair.fold()
        for module, forward in patched:
            module.forward = forward
        try:
            yield self._loss
        finally:
            for module, _ in patched:
                del module.forward
            for pair in self._pairs:
                pair.unfold()

    def judge(self, batch: Tensors) -> Judged:
        """What a model of `packs` makes of the labels, while `step` is open; the encoder reads each input once."""
        labels_n = batch["labels"].flatten()
        hidden_nd = packed_hidden(self._base, batch)
        asked_n = (labels_n != IGNORED).nonzero().squeeze(1)
        wanted_n1 = labels_n.index_select(0, asked_n)[:, None]
        tied = self._rows is not None and isinstance(self._head, TrainableTokensWrapper)
        weight = self._rows.whole if tied and self._rows else self._weight
        at_once = max(1, AT_ONCE // (4 * len(weight)))
        buffer = torch.empty(min(at_once, len(asked_n)), len(weight))
        parts = []
        for start in range(0, len(asked_n), at_once):
            part = slice(start, start + at_once)
            logits = torch.mm(hidden_nd[part], weight.t(), out=buffer[: len(hidden_nd[part])])
            if self._bias is not None:
                logits += self._bias
            parts.append(_judge(logits, wanted_n1[part]))
        return Judged(asked_n, *(torch.cat(column) for column in zip(*parts, strict=True)))

    def _loss(self, model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
        """As `token_loss`: the summed cross-entropy in nats over the micro-batch's target tokens."""
        labels_n = batch["labels"].flatten()
        asked_n = (labels_n != IGNORED).nonzero().squeeze(1)
        if self.packs:
            hidden_nd = packed_hidden(self._base, batch)
        else:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            hidden_nd = model(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, asked_n)
        tied = self._rows is not None and isinstance(self._head, TrainableTokensWrapper)
        rows = self._rows if tied else None
        weight, trained = (rows.whole, rows.trained) if rows else (self._weight.detach(), self._weight)
        found: torch.Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden_nd, trained, weight, self._bias, labels_n.index_select(0, asked_n), rows.ids if rows else None
        )
        return found


def _plain(model: Any) -> bool:
    """Whole, fp32 on a CPU, one active adapter at most, none switched off, no virtual pieces put before the input."""
    if is_split(model) or any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return False
    if any(value.dtype != torch.float32 or value.device.type != "cpu" for value in model.parameters()):
        return False
    adapted = [module for module in model.modules() if isinstance(module, _ADAPTED)]
    return all(len(module.active_adapters) <= 1 and not module.disable_adapters for module in adapted)


_ADAPTED = (LoraLinear, TrainableTokensLayer)


def _foldable(module: Any) -> bool:
    """Where the gradient of the folded weight costs about what the pair's own operations do."""
    if type(module) is not LoraLinear or module.merged or module.disable_adapters or not module.active_adapters:
        return False
    name = module.active_adapters[0]
    if name not in module.lora_A or name in module.lora_variant or module.fan_in_fan_out:
        return False
    base, down, up = module.get_base_layer(), module.lora_A[name], module.lora_B[name]
    if type(base) is not torch.nn.Linear or base.weight.requires_grad or up.bias is not None:
        return False
    if not isinstance(module.lora_dropout[name], torch.nn.Identity):
        return False
    rank, wide = down.weight.shape
    return bool(base.weight.numel() <= 8 * rank * (wide + up.weight.shape[0]))


def _pair(module: Any) -> _Pair:
    name = module.active_adapters[0]
    base = module.get_base_layer()
    folded = torch.empty_like(base.weight).requires_grad_(True)
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    return _Pair(module, base.weight.detach(), down, up, module.scaling[name], base.bias, folded)


def _rows(wrappers: list[Any]) -> _Rows | None:
    """None where the wrappers are not all of one plain table."""
    adapters = [wrapper.token_adapter for wrapper in wrappers]
    names = {tuple(adapter.active_adapters) for adapter in adapters}
    tables = {adapter.base_layer.weight.data_ptr() for adapter in adapters}
    plain = all(
        type(adapter.base_layer) is torch.nn.Linear
        or (type(adapter.base_layer) is torch.nn.Embedding and adapter.base_layer.padding_idx is None)
        for adapter in adapters
    )
    if not plain or len(names) != 1 or len(tables) != 1 or any(adapter.merged for adapter in adapters):
        return None
    name = "".join(names.pop())
    if name not in adapters[0].trainable_tokens_delta:
        return None
    ids = torch.tensor(adapters[0].token_indices[name])
    whole = adapters[0].base_layer.weight.detach().clone()
    place = torch.full((len(whole),), -1)
    place[ids] = torch.arange(len(ids))
    return _Rows(adapters[0].trainable_tokens_delta[name], ids, whole, place)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    return lambda inputs, *_: functional.linear(inputs, weight, bias)


def _lookup(rows: _Rows) -> Callable[..., torch.Tensor]:
    def forward(ids: torch.Tensor, *_: Any) -> torch.Tensor:
        found: torch.Tensor = _Lookup.apply(rows.trained, rows.whole, rows.place, ids)  # type: ignore[no-untyped-call]
        return found

    return forward


def _add_gradient(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


class _Lookup(torch.autograd.Function):
    """Rows of `whole` (v, d) by ids; only the trained (k, d) get a gradient."""

    @staticmethod
    def forward(ctx: Any, trained: Any, whole: Any, place: Any, ids: Any) -> Any:
        ctx.save_for_backward(place[ids.flatten()])
        ctx.shape = trained.shape
        return functional.embedding(ids, whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (place_n,) = ctx.saved_tensors
        at = (place_n >= 0).nonzero().squeeze(1)
        of_trained = torch.zeros(ctx.shape)
        of_trained.index_add_(0, place_n[at], gradients[0].flatten(0, -2)[at])
        return of_trained, None, None, None


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of softmax(hidden weight^T + bias) over labels (n), its gradient made beside it.

    hidden (n, d), weight (v, d), bias (v) or None. trained: the weight itself or, with `rows`, its rows of these ids.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, trained: Any, weight: Any, bias: Any, labels: Any, rows: Any) -> Any:
        needs_hidden, needs_trained, _, needs_bias = ctx.needs_input_grad[:4]
        of_hidden = torch.empty_like(hidden) if needs_hidden else None
        of_trained = torch.zeros_like(trained) if needs_trained else None
        of_bias = torch.zeros_like(bias) if needs_bias else None
        count, at_once = len(labels), max(1, AT_ONCE // (4 * len(weight)))
        buffer = torch.empty(min(at_once, count), len(weight))
        total = torch.zeros(())
        for start in range(0, count, at_once):
            part = slice(start, start + at_once)
            hidden_nd, wanted_n1 = hidden[part], labels[part, None]
            logits = torch.mm(hidden_nd, weight.t(), out=buffer[: len(hidden_nd)])
            if bias is not None:
                logits += bias
            said = logits.gather(1, wanted_n1)
            largest = logits.amax(1, keepdim=True)
            gradient = logits.sub_(largest).exp_()
            summed = gradient.sum(1, keepdim=True)
            total += (summed.log() + largest - said).sum()
            if not any(ctx.needs_input_grad[:4]):
                continue
            # softmax less one where the target is, divided by the sum after the product rather than before it
            gradient.scatter_add_(1, wanted_n1, -summed)
            if of_trained is not None or of_bias is not None:
                _add_of_weight(gradient, hidden_nd, summed, of_trained, of_bias, rows)
            if of_hidden is not None:
                torch.mm(gradient, weight, out=of_hidden[part]).div_(summed)
        ctx.save_for_backward(of_hidden, of_trained, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        of_hidden, of_trained, of_bias = (
            None if tensor is None else tensor.mul_(gradients[0]) for tensor in ctx.saved_tensors
        )
        return of_hidden, of_trained, None, of_bias, None, None


def _add_of_weight(gradient: Any, hidden: Any, summed: Any, of_weight: Any, of_bias: Any, rows: Any) -> None:
    """gradient (n, v), still to be divided by `summed` (n, 1); of_weight (v, d), or of `rows` alone."""
    if of_bias is not None:
        of_bias += (gradient / summed).sum(0)
    if of_weight is not None:
        chosen = gradient if rows is None else gradient.index_select(1, rows)
        of_weight.addmm_(chosen.t(), hidden / summed)
