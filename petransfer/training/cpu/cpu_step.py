"""Compute the loss and the gradients of a training step on a CPU faster than peft, with the same result.

- At 32 bits, each LoRA pair (A and B) is added to its weight once a step. The gradient of the pair is computed from the
  gradient of the weight.
- Below 32 bits, the output of the LoRA pair is added to the output of the frozen layer. Quantised weights of a small
  model are dequantised only once.
- An embedding table with some trained rows is assembled once a step.
- The output head skips padding and computes the logits in blocks that fit a CPU's cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import petransfer.models.bitsandbytes_import  # noqa: F401 - must be imported before peft

# isort: split
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import TrainableTokensWrapper

from petransfer.models.wrappers import base_model_of
from petransfer.training.autocast import is_autocast
from petransfer.training.batches import IGNORED, Tensors
from petransfer.training.cpu.embedding_rows import trained_rows
from petransfer.training.cpu.lora_pairs import pairs_of
from petransfer.training.cpu.packed_attention import can_skip_padding, has_dropout, unpadded_hidden
from petransfer.training.distributed import needs_all_processes
from petransfer.training.losses import PLAIN_HEADS, head_cross_entropy

# Bytes of logits in one block. A step of full fine-tuning on COGS took 262 ms with 1 MiB, 241 ms with 4 MiB and 241 ms
# with 16 MiB (nano, one thread, medians of 8 turns, AMD EPYC with AVX-512).
BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class LabelScores:
    """Scores at the n positions that have a label. All tensors have the shape (n,).

    Attributes:
        at: position in the flattened batch.
        wanted: logit of the label.
        log_prob: log-probability of the label, in nats.
        rival: largest logit of all other tokens.
        rival_id: token with the logit `rival`. 0 if `rival` is below `wanted`.
        largest: largest absolute value of the logits at the position.
    """

    at: torch.Tensor
    wanted: torch.Tensor
    log_prob: torch.Tensor
    rival: torch.Tensor
    rival_id: torch.Tensor
    largest: torch.Tensor


def _score_block(logits_nv: torch.Tensor, wanted_n1: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return all fields of `LabelScores` except `at` for a block of positions. Overwrites the logits."""
    wanted_n = logits_nv.gather(1, wanted_n1).squeeze(1)
    # Use amin and amax, because on a CPU aminmax and max with an index take more than ten times as long.
    least_n = logits_nv.amin(1)
    rival_n = logits_nv.scatter_(1, wanted_n1, -torch.inf).amax(1)
    missed_m = (rival_n >= wanted_n).nonzero().squeeze(1)
    rival_id_n = torch.zeros(len(logits_nv), dtype=torch.long).index_copy_(
        0, missed_m, logits_nv.index_select(0, missed_m).argmax(1)
    )
    most_n = torch.maximum(rival_n, wanted_n)
    others_n = logits_nv.sub_(most_n[:, None]).exp_().sum(1)
    log_prob_n = wanted_n - most_n - (others_n + (wanted_n - most_n).exp()).log()
    return wanted_n, log_prob_n, rival_n, rival_id_n, torch.maximum(most_n.abs(), least_n.abs())


class CpuFastPath:
    """A faster training step of a model on a CPU. Compute the gradient of a batch inside `with step()`.

    Args:
        scoring: whether the model only scores examples, without dropout. Supported only at 32 bits.

    Attributes:
        usable: whether there is a faster step. False, for example, on a GPU.
        skips_padding: whether padding is skipped.
        kept: bytes of the tensors that are kept in addition to the model.
    """

    def __init__(self, model: torch.nn.Module, *, scoring: bool = False) -> None:
        self._base = base = base_model_of(model)
        self._head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        self.skips_padding, self.kept = False, 0
        dtype = _dtype(model)
        known = getattr(getattr(base, "config", None), "model_type", None) in PLAIN_HEADS
        # LLM.int8 computes different numbers in scoring than in training.
        self.usable = known and dtype is not None and (dtype == torch.float32 or not scoring)
        if not self.usable or dtype is None:
            return
        self.skips_padding = can_skip_padding(base) and (scoring or not has_dropout(base))
        self._folded, self._beside = pairs_of(model, dtype)
        wrappers = [module for module in model.modules() if isinstance(module, TrainableTokensWrapper)]
        self._lookups = [module for module in wrappers if module is not self._head]
        self._rows = trained_rows(wrappers) if wrappers else None
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
        """Yield the loss function, and speed up the layers of the model during the `with` block.

        The gradients of the trained tensors are complete only after the block.
        """
        patched: list[tuple[Any, Callable[..., torch.Tensor]]]
        patched = [(pair.layer, pair.forward) for pair in self._folded]
        patched += [(pair.layer, pair.forward) for pair in self._beside]
        if self._rows is not None:
            self._rows.fill()
            patched += [(module, self._rows.look_up) for module in self._lookups]
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
        """Score the labels of a batch without keeping the logits.

        Call this inside `with step()`, and only if `skips_padding` is true.
        """
        labels_n = batch["labels"].flatten()
        hidden_nd = unpadded_hidden(self._base, batch)
        labelled_n = (labels_n != IGNORED).nonzero().squeeze(1)
        wanted_n1 = labels_n.index_select(0, labelled_n)[:, None]
        tied = self._rows is not None and isinstance(self._head, TrainableTokensWrapper)
        weight = self._rows.whole if tied and self._rows else self._weight
        block = max(1, BLOCK_BYTES // (4 * len(weight)))
        buffer = torch.empty(min(block, len(labelled_n)), len(weight))
        parts = []
        for start in range(0, len(labelled_n), block):
            part = slice(start, start + block)
            logits = torch.mm(hidden_nd[part], weight.t(), out=buffer[: len(hidden_nd[part])])
            if self._bias is not None:
                logits += self._bias
            parts.append(_score_block(logits, wanted_n1[part]))
        return LabelScores(labelled_n, *(torch.cat(column) for column in zip(*parts, strict=True)))

    def _loss(self, model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
        """Return the cross-entropy in nats, summed over the target tokens, as `token_loss` does."""
        labels_n = batch["labels"].flatten()
        labelled_n = (labels_n != IGNORED).nonzero().squeeze(1)
        if self.skips_padding:
            hidden_nd = unpadded_hidden(self._base, batch)
        else:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            hidden_nd = model(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, labelled_n)
        tied = self._rows is not None and isinstance(self._head, TrainableTokensWrapper)
        rows = self._rows if tied else None
        weight, trained = (rows.whole, rows.trained) if rows else (self._weight.detach(), self._weight)
        block = max(1, BLOCK_BYTES // (4 * len(weight)))
        labels_n = labels_n.index_select(0, labelled_n)
        ids = rows.ids if rows else None
        return head_cross_entropy(hidden_nd, trained, weight, self._bias, labels_n, ids, block=block)


def _dtype(model: Any) -> torch.dtype | None:
    """Return the dtype that a model on a CPU computes in, fp32 or bf16. None for an unsupported model."""
    if needs_all_processes(model) or any(
        config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()
    ):
        return None
    if is_autocast(model) or any(value.device.type != "cpu" for value in model.parameters()):
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
