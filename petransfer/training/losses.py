"""Compute the loss of a micro-batch without holding all logits of a large vocabulary at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from petransfer.training.batches import IGNORED, Tensors

# Logits that would take more than so many bytes in fp32 are computed in chunks, each of about a quarter of it.
WHOLE = 2**28

# Architectures whose logits are the output of the head (a test checks each).
PLAIN_HEADS = frozenset(
    {
        *("t5", "mt5", "longt5", "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "starcoder2"),
        *("opt", "bloom", "gpt_neox", "m2m_100", "smollm3", "gemma3", "qwen2_vl", "qwen2_5_vl"),
    }
)
# Architectures that add a buffer, `final_logits_bias`, to the output of the head.
BIASED_HEADS = frozenset({"bart", "mbart", "marian", "pegasus"})
# Architectures that limit the output of the head, u, to c * tanh(u / c) where their configuration names a c.
CAPPED_HEADS = frozenset({"gemma2", "gemma3_text", "t5gemma", "t5gemma2"})


class Head(NamedTuple):
    """The last step of a model, from hidden states to logits.

    model: the model without adapters.
    layer: the linear layer that gives the logits.
    capped_by: the configuration whose `final_logit_softcapping` limits the logits; None where they are not limited.
    """

    model: Any
    layer: torch.nn.Linear
    capped_by: Any | None

    @property
    def cap(self) -> float:
        """The limit of the logits; 0 where there is none."""
        return float(self.capped_by.final_logit_softcapping) if self.capped_by is not None else 0.0

    @property
    def bias(self) -> torch.Tensor | None:
        """What is added to the product of hidden states and weights: (v,)."""
        added = getattr(self.model, "final_logits_bias", None)
        return self.layer.bias if added is None else added[0].to(self.layer.weight.dtype)

    def chunk_rows(self) -> int:
        """Return the rows of one chunk of logits."""
        return max(1, WHOLE // (16 * self.layer.weight.shape[0]))

    def logits(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states, (n, v) in fp32."""
        return _capped(functional.linear(hidden_nd, self.layer.weight, self.bias).float(), self.cap)


def token_loss(model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    """Return the cross-entropy in nats, summed over the micro-batch's target tokens and computed in fp32."""
    labels = batch["labels"].flatten()
    head = chunked_head(model, labels.numel())
    if head is None:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits_btv = model(**inputs, use_cache=False).logits
        return functional.cross_entropy(logits_btv.float().flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
    hidden_nd = hidden_states(model, head, batch)
    chunked: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_nd, head.layer.weight, head.bias, labels, head.chunk_rows(), head.cap
    )
    return chunked


def chunked_head(model: Any, positions: int) -> Head | None:
    """Return the head where the logits of so many positions are to be computed in chunks, else None."""
    head = known_head(model)
    return head if head is not None and 4 * positions * head.layer.weight.shape[0] > WHOLE else None


def known_head(model: Any) -> Head | None:
    """Return how a model gets from hidden states to logits, None where that is not known."""
    while hasattr(model, "module"):  # DistributedDataParallel and similar wrappers
        model = model.module
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(base, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in PLAIN_HEADS | BIASED_HEADS | CAPPED_HEADS:
        return None
    layer = base.get_output_embeddings()
    if type(layer) is not torch.nn.Linear:
        return None
    capped_by = getattr(config, "decoder", config) if kind in CAPPED_HEADS else None
    return Head(base, layer, capped_by if getattr(capped_by, "final_logit_softcapping", None) else None)


def hidden_states(model: torch.nn.Module, head: Head, batch: Tensors) -> torch.Tensor:
    """Return what goes into the head at every position of a batch: (batch * positions, d)."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with without_head(head):
        hidden_btd: torch.Tensor = model(**inputs, use_cache=False).logits
    return hidden_btd.flatten(0, 1).to(head.layer.weight.dtype)


@contextlib.contextmanager
def without_head(head: Head) -> Iterator[None]:
    """Let the model return the input of its head in place of logits."""
    model, cap = head.model, head.cap
    head.layer.forward = lambda hidden: hidden  # type: ignore[method-assign, assignment]
    added = getattr(model, "final_logits_bias", None)
    if added is not None:
        model.final_logits_bias = added.new_zeros(())
    if head.capped_by is not None:
        head.capped_by.final_logit_softcapping = None
    try:
        yield
    finally:
        del head.layer.forward
        if added is not None:
            model.final_logits_bias = added
        if head.capped_by is not None:
            head.capped_by.final_logit_softcapping = cap


def _capped(logits: torch.Tensor, cap: float) -> torch.Tensor:
    return cap * torch.tanh(logits / cap) if cap else logits


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softmax(cap * tanh((hidden weight^T + bias) / cap)), `tokens` rows at a time.

    The gradient is computed with the loss, so that no chunk of logits is computed twice or kept. hidden: (n, d),
    weight: (v, d), bias: (v) or None, labels: (n), cap: 0 for no limit.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, labels: Any, tokens: int, cap: float) -> Any:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(labels), tokens):
            rows = slice(start, start + tokens)
            logits = _capped(functional.linear(hidden[rows], weight, bias).float(), cap)
            wanted = labels[rows].clamp(min=0)[:, None]
            counts = (labels[rows] != IGNORED)[:, None]
            normaliser = logits.logsumexp(1, keepdim=True)
            total += ((normaliser - logits.gather(1, wanted)) * counts).sum()
            if of_hidden is None and of_weight is None and of_bias is None:
                continue
            slope = 1 - (logits / cap).square() if cap else None  # of the limited logits, by the unlimited ones
            # The gradient of the logits, in place: softmax, less one at the target.
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=gradient.dtype)).mul_(counts)
            if slope is not None:
                gradient.mul_(slope)
            narrow = gradient.to(weight.dtype)
            if of_hidden is not None:
                of_hidden[rows] = narrow @ weight
            if of_weight is not None:
                of_weight.addmm_(narrow.t(), hidden[rows])
            if of_bias is not None:
                of_bias += gradient.sum(0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        scaled = [None if tensor is None else tensor.mul_(gradients[0]) for tensor in ctx.saved_tensors]
        return (*scaled, None, None, None)
