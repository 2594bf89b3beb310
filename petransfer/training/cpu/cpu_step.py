"""The same loss and gradients on a CPU with less work: for a small model most of a step is not the model's own.

Three things are left out. A LoRA pair is folded into its weight once a step, and its gradient is taken from that of the
weight; below 32 bits it stands beside it, and quantised weights are not unpacked again at each use (`pairs`). The
embeddings of which peft trains some rows are put together once a step, not at each use, and only those rows get a
gradient. The head reads no padding and its logits never leave the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import petransfer.models.bitsandbytes_import  # noqa: F401 - before peft

# isort: split
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import TrainableTokensWrapper
from torch.nn import functional

from petransfer.training.batches import IGNORED, Tensors
from petransfer.training.cpu.lora_pairs import once, pairs_of
from petransfer.training.cpu.packed_attention import can_pack, draws, packed_hidden
from petransfer.training.distributed.fsdp import is_sharded
from petransfer.training.losses import PLAIN_HEADS, head_cross_entropy

# Bytes of logits that are made at once: they stay in a core's second cache.
AT_ONCE = 2**20


@dataclass(frozen=True)
class _Rows:
    """Embeddings of which some rows are trained.

    table (v, d): as they were. whole (v, d): as they act between `fill` and `clear`. place (v,): of each piece, or -1.
    """

    trained: torch.nn.Parameter
    ids: torch.Tensor
    table: torch.Tensor
    whole: torch.Tensor
    place: torch.Tensor

    @torch.no_grad()
    def fill(self) -> None:
        self.whole[self.ids] = self.trained.to(self.whole.dtype)

    @torch.no_grad()
    def clear(self) -> None:
        """Leaves `whole` as another model, which trains other rows of the table, wants to find it."""
        self.whole[self.ids] = self.table[self.ids]


@dataclass(frozen=True)
class LabelScores:
    """Of the positions that labels ask for, at (n,) in the flattened batch, each (n,).

    wanted, rival: the label's logit and the largest other. rival_id: its piece where it is no less than the label's
    logit, else 0. log_prob: of the label, in nats. largest: of all logits' sizes.
    """

    at: torch.Tensor
    wanted: torch.Tensor
    log_prob: torch.Tensor
    rival: torch.Tensor
    rival_id: torch.Tensor
    largest: torch.Tensor


def _score_block(logits_nv: torch.Tensor, wanted_n1: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Overwrites the logits."""
    wanted_n = logits_nv.gather(1, wanted_n1).squeeze(1)
    # aminmax, and max which says where, take more than ten times as long on a CPU
    least_n = logits_nv.amin(1)
    rival_n = logits_nv.scatter_(1, wanted_n1, -torch.inf).amax(1)
    missed = (rival_n >= wanted_n).nonzero().squeeze(1)
    rival_id_n = torch.zeros(len(logits_nv), dtype=torch.long).index_copy_(
        0, missed, logits_nv.index_select(0, missed).argmax(1)
    )
    most_n = torch.maximum(rival_n, wanted_n)
    others_n = logits_nv.sub_(most_n[:, None]).exp_().sum(1)
    log_prob_n = wanted_n - most_n - (others_n + (wanted_n - most_n).exp()).log()
    return wanted_n, log_prob_n, rival_n, rival_id_n, torch.maximum(most_n.abs(), least_n.abs())


class CpuFastPath:
    """A step of a model on a CPU with less work; `step` is open while the gradient of a batch is computed.

    Args:
        model: the model with its method applied.
        scoring: no dropout is drawn, so that padding can be skipped for models that train with dropout too. Only at 32
            bits, because LLM.int8 scores with other numbers than it trains with.

    Attributes:
        usable: False where nothing can be saved, as on a GPU.
        skips_padding: whether no padding is computed.
        kept: bytes of the tensors that are held beside the model.
    """

    def __init__(self, model: torch.nn.Module, *, scoring: bool = False) -> None:
        base: Any = model
        base = base.get_base_model() if hasattr(base, "get_base_model") else base
        self._base = base
        self._head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        self.skips_padding, self.kept = False, 0
        dtype = _dtype(model)
        known = getattr(getattr(base, "config", None), "model_type", None) in PLAIN_HEADS
        self.usable = known and dtype is not None and (dtype == torch.float32 or not scoring)
        if not self.usable or dtype is None:
            return
        self.skips_padding = can_pack(base) and (scoring or not draws(base))
        self._folded, self._beside = pairs_of(model, dtype)
        wrappers = [module for module in model.modules() if isinstance(module, TrainableTokensWrapper)]
        self._lookups = [module for module in wrappers if module is not self._head]
        self._rows = _rows(wrappers) if wrappers else None
        head = self._head.token_adapter.base_layer if isinstance(self._head, TrainableTokensWrapper) else self._head
        self.usable = type(head) is torch.nn.Linear and (not wrappers or self._rows is not None)
        self._weight: Any = getattr(head, "weight", None)
        self._bias = getattr(head, "bias", None)
        if self.usable:
            own = {value.untyped_storage().data_ptr() for value in model.parameters()}
            made = [*(pair.folded for pair in self._folded), *(pair.weight for pair in self._beside)]
            made += [self._rows.whole] if self._rows is not None else []
            self.kept = sum(it.nbytes for it in made if it.untyped_storage().data_ptr() not in own)

    @contextlib.contextmanager
    def step(self) -> Iterator[Callable[[torch.nn.Module, Tensors], torch.Tensor]]:
        """Gives the loss to use; when it closes, every trained tensor has its gradient."""
        patched: list[tuple[Any, Callable[..., torch.Tensor]]]
        patched = [(pair.layer, pair.forward) for pair in self._folded]
        patched += [(pair.layer, pair.forward) for pair in self._beside]
        if self._rows is not None:
            self._rows.fill()
            patched += [(module, _lookup(self._rows)) for module in self._lookups]
        patched.append((self._head, lambda hidden, *_: hidden))
        for pair in self._folded:
            pair.fold()
        for module, forward in patched:
            module.forward = forward
        try:
            yield self._loss
        finally:
            for module, _ in patched:
                del module.forward
            for pair in self._folded:
                pair.unfold()
            if self._rows is not None:
                self._rows.clear()

    def score_labels(self, batch: Tensors) -> LabelScores:
        """Score the labels of a batch while `step` is open, where padding is skipped; no logits are kept."""
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
            parts.append(_score_block(logits, wanted_n1[part]))
        return LabelScores(asked_n, *(torch.cat(column) for column in zip(*parts, strict=True)))

    def _loss(self, model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
        """As `token_loss`: the summed cross-entropy in nats over the micro-batch's target tokens."""
        labels_n = batch["labels"].flatten()
        asked_n = (labels_n != IGNORED).nonzero().squeeze(1)
        if self.skips_padding:
            hidden_nd = packed_hidden(self._base, batch)
        else:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            hidden_nd = model(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, asked_n)
        tied = self._rows is not None and isinstance(self._head, TrainableTokensWrapper)
        rows = self._rows if tied else None
        weight, trained = (rows.whole, rows.trained) if rows else (self._weight.detach(), self._weight)
        block = max(1, AT_ONCE // (4 * len(weight)))
        labels_n = labels_n.index_select(0, asked_n)
        ids = rows.ids if rows else None
        return head_cross_entropy(hidden_nd, trained, weight, self._bias, labels_n, ids, block=block)


def _dtype(model: Any) -> torch.dtype | None:
    """What a model on a CPU computes in, fp32 or bf16; None where it is elsewhere, split, or of several widths.

    None also where an adapter is one of several or switched off, or puts virtual pieces before the input.
    """
    if is_sharded(model) or any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return None
    if any(value.device.type != "cpu" for value in model.parameters()):
        return None
    adapted = [module for module in model.modules() if isinstance(module, _ADAPTED)]
    if any(len(module.active_adapters) > 1 or module.disable_adapters for module in adapted):
        return None
    dtypes = {value.dtype for value in model.parameters() if value.is_floating_point()}
    if dtypes == {torch.float32}:
        return torch.float32
    frozen = {value.dtype for value in model.parameters() if value.is_floating_point() and not value.requires_grad}
    return torch.bfloat16 if frozen == {torch.bfloat16} and dtypes <= {torch.float32, torch.bfloat16} else None


_ADAPTED = (LoraLinear, TrainableTokensLayer)


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
    table = adapters[0].base_layer.weight.detach()
    whole = once("whole", adapters[0].base_layer.weight, lambda: torch.empty_like(table)).copy_(table)
    place = torch.full((len(whole),), -1)
    place[ids] = torch.arange(len(ids))
    return _Rows(adapters[0].trainable_tokens_delta[name], ids, table, whole, place)


def _lookup(rows: _Rows) -> Callable[..., torch.Tensor]:
    def forward(ids: torch.Tensor, *_: Any) -> torch.Tensor:
        found: torch.Tensor = _Lookup.apply(rows.trained, rows.whole, rows.place, ids)  # type: ignore[no-untyped-call]
        return found

    return forward


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
        of_trained.index_add_(0, place_n[at], gradients[0].flatten(0, -2)[at].float())
        return of_trained, None, None, None
