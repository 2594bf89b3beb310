"""The loss of a micro-batch, without ever holding all logits of a large vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from petransfer.training.batches import IGNORED, Tensors

# Above so many bytes of fp32 logits a micro-batch's are computed in pieces, each of about a quarter of it.
WHOLE = 2**28

# Architectures whose logits are the head's output and nothing else (checked by a test): no bias that is added, no
# scaling or capping after the head.
PLAIN_HEADS = frozenset(
    {
        *("t5", "mt5", "longt5", "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "starcoder2"),
        *("opt", "bloom", "gpt_neox", "m2m_100"),
    }
)
# Those that add a buffer to it, `final_logits_bias`, and nothing else.
BIASED_HEADS = frozenset({"bart", "mbart", "marian", "pegasus"})


def token_loss(model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    """The summed cross-entropy in nats over the micro-batch's target tokens, computed in fp32."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"].flatten()
    known = known_head(model)
    if known is not None and 4 * labels.numel() * known[1].weight.shape[0] > WHOLE:
        base, head = known
        added = getattr(base, "final_logits_bias", None)
        bias = head.bias if added is None else added[0].to(head.weight.dtype)
        with _passed_through(base, head):
            hidden_btd = model(**inputs, use_cache=False).logits
        hidden_nd = hidden_btd.flatten(0, 1).to(head.weight.dtype)
        tokens = max(1, WHOLE // (16 * head.weight.shape[0]))
        chunked: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_nd, head.weight, bias, labels, tokens
        )
        return chunked
    logits_btv = model(**inputs, use_cache=False).logits
    return functional.cross_entropy(logits_btv.float().flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")


def known_head(model: Any) -> tuple[Any, torch.nn.Linear] | None:
    """The model without adapters, and the layer whose output is the logits but for `final_logits_bias`, if it has that.

    None where more is done to them or that is not known.
    """
    while hasattr(model, "module"):  # DistributedDataParallel and its kin
        model = model.module
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(base, "config", None)
    if getattr(config, "model_type", None) not in PLAIN_HEADS | BIASED_HEADS:
        return None
    head = base.get_output_embeddings()
    return (base, head) if type(head) is torch.nn.Linear else None


@contextlib.contextmanager
def _passed_through(base: Any, head: torch.nn.Linear) -> Iterator[None]:
    """Lets the model return what goes into its head in place of logits."""
    head.forward = lambda hidden: hidden  # type: ignore[method-assign, assignment]
    added = getattr(base, "final_logits_bias", None)
    if added is not None:
        base.final_logits_bias = added.new_zeros(())
    try:
        yield
    finally:
        del head.forward
        if added is not None:
            base.final_logits_bias = added


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softmax(hidden weight^T + bias), `tokens` rows at a time.

    The gradient is made beside the loss, so that no piece of logits is computed twice or kept. hidden (n, d), weight
    (v, d), bias (v) or None, labels (n).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, labels: Any, tokens: int) -> Any:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(labels), tokens):
            rows = slice(start, start + tokens)
            logits = functional.linear(hidden[rows], weight, bias).float()
            wanted = labels[rows].clamp(min=0)[:, None]
            counts = (labels[rows] != IGNORED)[:, None]
            normaliser = logits.logsumexp(1, keepdim=True)
            total += ((normaliser - logits.gather(1, wanted)) * counts).sum()
            if of_hidden is None and of_weight is None and of_bias is None:
                continue
            # from logits to their gradient, in place: softmax less one where the target is
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=gradient.dtype)).mul_(counts)
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
        return (*scaled, None, None)
