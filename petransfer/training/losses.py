"""Compute the loss of a micro-batch. The logits of a large vocabulary are computed in chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from petransfer.models.wrappers import base_model_of
from petransfer.training.batches import IGNORED, Tensors

LossFunction = Callable[[torch.nn.Module, Tensors], torch.Tensor]

# Logits that need more bytes than this in fp32 are computed in chunks; a chunk needs about a quarter of this size.
WHOLE = 2**28

# Architectures whose logits are exactly the output of the head. A test checks each architecture.
PLAIN_HEADS = frozenset(
    {
        *("t5", "mt5", "longt5", "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "starcoder2"),
        *("opt", "bloom", "gpt_neox", "m2m_100", "smollm3", "gemma3", "qwen2_vl", "qwen2_5_vl"),
    }
)
# Architectures that add a buffer, `final_logits_bias`, to the output of the head.
BIASED_HEADS = frozenset({"bart", "mbart", "marian", "pegasus"})
# Architectures that limit the output u of the head to c * tanh(u / c) if their configuration has a value c.
CAPPED_HEADS = frozenset({"gemma2", "gemma3_text", "t5gemma", "t5gemma2"})


class Head(NamedTuple):
    """The output head of a model, from hidden states to logits.

    model: the model without adapters.
    layer: the linear layer that computes the logits.
    capped_by: the configuration whose `final_logit_softcapping` limits the logits. None without a limit.
    """

    model: Any
    layer: torch.nn.Linear
    capped_by: Any | None

    @property
    def cap(self) -> float:
        """The limit of the logits. 0 means no limit."""
        return float(self.capped_by.final_logit_softcapping) if self.capped_by is not None else 0.0

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias (v,) of the output head. None without a bias."""
        added = getattr(self.model, "final_logits_bias", None)
        return self.layer.bias if added is None else added[0].to(self.layer.weight.dtype)

    def chunk_rows(self) -> int:
        """Return the number of token positions in one chunk of logits."""
        return max(1, WHOLE // (16 * self.layer.weight.shape[0]))

    def logits(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, v) of hidden states (n, d), in fp32."""
        return _capped(functional.linear(hidden_nd, self.layer.weight, self.bias).float(), self.cap)


def token_loss(model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    """Return the cross-entropy of a micro-batch in nats, summed over target tokens, in fp32."""
    labels = batch["labels"].flatten()
    head = chunked_head(model, labels.numel())
    if head is None:
        logits_nv = logits_at_labels(model, batch).float().flatten(0, 1)
        return functional.cross_entropy(logits_nv, labels, ignore_index=IGNORED, reduction="sum")
    hidden_nd = hidden_states(model, head, batch)
    weight = head.layer.weight
    return head_cross_entropy(
        hidden_nd, weight, weight.detach(), head.bias, labels, block=head.chunk_rows(), cap=head.cap
    )


def chunked_head(model: Any, positions: int) -> Head | None:
    """Return the output head if the logits of `positions` tokens need chunks, else None.

    The result is also None for an unsupported head.
    """
    head = known_head(model)
    return head if head is not None and 4 * positions * head.layer.weight.shape[0] > WHOLE else None


def known_head(model: Any) -> Head | None:
    """Return the output head of a model. None for an unsupported architecture or head."""
    while hasattr(model, "module"):  # DistributedDataParallel and similar wrappers
        model = model.module
    base = base_model_of(model)
    config = getattr(base, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in PLAIN_HEADS | BIASED_HEADS | CAPPED_HEADS:
        return None
    layer = base.get_output_embeddings()
    if type(layer) is not torch.nn.Linear:
        return None
    capped_by = getattr(config, "decoder", config) if kind in CAPPED_HEADS else None
    return Head(base, layer, capped_by if getattr(capped_by, "final_logit_softcapping", None) else None)


def logits_at_labels(model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    """Return the logits at every position of the labels: (batch, positions, v).

    If peft puts virtual tokens before the input of a decoder-only model, the model also returns logits for these
    tokens. They are left out.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits_bsv: torch.Tensor = model(**inputs, use_cache=False).logits
    before = logits_bsv.shape[1] - batch["labels"].shape[1]
    return logits_bsv[:, before:] if before else logits_bsv  # in training, even a slice of all positions costs a copy


def hidden_states(model: torch.nn.Module, head: Head, batch: Tensors) -> torch.Tensor:
    """Return the input of the head at every position of the labels: (batch * positions, d)."""
    with without_head(head):
        hidden_btd = logits_at_labels(model, batch)
    return hidden_btd.flatten(0, 1).to(head.layer.weight.dtype)


@contextlib.contextmanager
def without_head(head: Head) -> Iterator[None]:
    """Make the model return the input of its head, in place of logits, during the `with` block."""
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


def head_cross_entropy(
    hidden_nd: torch.Tensor,
    trained: torch.Tensor,
    weight_vd: torch.Tensor,
    bias_v: torch.Tensor | None,
    labels_n: torch.Tensor,
    rows_k: torch.Tensor | None = None,
    *,
    block: int,
    cap: float = 0.0,
) -> torch.Tensor:
    """Return the summed cross-entropy of an output head in nats. See `HeadCrossEntropy` for the arguments."""
    loss: torch.Tensor = HeadCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_nd, trained, weight_vd, bias_v, labels_n, rows_k, block, cap
    )
    return loss


class HeadCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softmax(hidden weight^T + bias), computed in blocks of token positions.

    The gradient is computed together with the loss. Only one block of logits is in memory at a time.

    Arguments of `apply`:

    - hidden: (n, d), the input of the head at n positions.
    - trained: the tensor that gets the gradient: the whole weight (v, d), or k of its rows (k, d).
    - weight: (v, d), the weight that computes the logits.
    - bias: (v,), or None.
    - labels: (n,), `IGNORED` at positions without a loss.
    - rows: (k,), ids of the rows in `trained`. None if `trained` is the whole weight.
    - block: number of positions in a block.
    - cap: limit of the logits, cap * tanh(logits / cap). 0 means no limit.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Any, trained: Any, weight: Any, bias: Any, labels: Any, rows: Any, block: int, cap: float
    ) -> torch.Tensor:
        needs_hidden, needs_trained, _, needs_bias = ctx.needs_input_grad[:4]
        hidden = hidden.to(weight.dtype)
        of_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs_hidden else None
        of_trained = torch.zeros_like(trained, dtype=torch.float32) if needs_trained else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        count = len(labels)
        buffer = torch.empty(min(block, count), len(weight), dtype=weight.dtype, device=hidden.device)
        total = torch.zeros((), device=hidden.device)
        for start in range(0, count, block):
            part = slice(start, start + block)
            hidden_nd, label_n1 = hidden[part], labels[part, None]
            narrow_nv = torch.mm(hidden_nd, weight.t(), out=buffer[: len(hidden_nd)])
            if bias is not None:
                narrow_nv += bias
            loss, gradient_nv, sum_n1 = _block_loss(_capped(narrow_nv.float(), cap), label_n1, cap)
            total += loss
            if of_trained is not None or of_bias is not None:
                _add_weight_gradient(gradient_nv, hidden_nd.float(), sum_n1, of_trained, of_bias, rows)
            if of_hidden is not None:
                torch.div(torch.mm(gradient_nv.to(weight.dtype), weight), sum_n1, out=of_hidden[part])
        ctx.save_for_backward(of_hidden, of_trained, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        of_hidden, of_trained, of_bias = (
            None if tensor is None else tensor.mul_(gradients[0]) for tensor in ctx.saved_tensors
        )
        return of_hidden, of_trained, None, of_bias, None, None, None, None


def _block_loss(
    logits_nv: torch.Tensor, label_n1: torch.Tensor, cap: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a block's summed loss, the gradient of its logits (n, v) and a divisor for each row (n, 1).

    Each row of the gradient must still be divided by its divisor. `logits_nv` is overwritten.
    """
    known_n1, wanted_n1 = label_n1 != IGNORED, label_n1.clamp(min=0)
    # The logits are already limited by `cap`. The gradient is with respect to the logits before the limit.
    slope_nv = 1 - (logits_nv / cap).square() if cap else None  # derivative of cap * tanh(u / cap) with respect to u
    wanted_logit_n1 = logits_nv.gather(1, wanted_n1)
    largest_n1 = logits_nv.amax(1, keepdim=True)
    gradient_nv = logits_nv.sub_(largest_n1).exp_()
    sum_n1 = gradient_nv.sum(1, keepdim=True)
    loss = ((sum_n1.log() + largest_n1 - wanted_logit_n1) * known_n1).sum()
    gradient_nv.scatter_add_(1, wanted_n1, -sum_n1)  # softmax, minus 1 at the label
    if slope_nv is not None:
        gradient_nv.mul_(slope_nv)
    # The caller divides smaller tensors, such as products with the gradient, because this is faster. A divisor of
    # infinity makes the gradient of a row without a label zero.
    return loss, gradient_nv, sum_n1.masked_fill(~known_n1, torch.inf)


def _add_weight_gradient(
    gradient_nv: torch.Tensor, hidden_nd: torch.Tensor, sum_n1: torch.Tensor, of_weight: Any, of_bias: Any, rows: Any
) -> None:
    """Add a block's gradients to `of_weight` and `of_bias`, except to None."""
    if of_bias is not None:
        of_bias += (gradient_nv / sum_n1).sum(0)
    if of_weight is not None:
        chosen_nk = gradient_nv if rows is None else gradient_nv.index_select(1, rows)
        of_weight.addmm_(chosen_nk.t(), hidden_nd / sum_n1)
