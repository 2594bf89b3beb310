"""Speed up embeddings with some trained rows on a CPU: assemble the table once a step, not at each use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from petransfer.training.cpu.lora_pairs import derived_tensor


@dataclass(frozen=True)
class TrainedRows:
    """An embedding table with some trained rows.

    trained: (k, d), the trained rows.
    ids: (k,), token ids of the trained rows.
    table: (v, d), the frozen table.
    whole: (v, d), the table with the trained rows, valid between `fill` and `clear`.
    place: (v,), each token's row in `trained`. -1 for a frozen row.
    """

    trained: torch.nn.Parameter
    ids: torch.Tensor
    table: torch.Tensor
    whole: torch.Tensor
    place: torch.Tensor

    @torch.no_grad()
    def fill(self) -> None:
        """Copy the trained rows into `whole`."""
        self.whole[self.ids] = self.trained.to(self.whole.dtype)

    @torch.no_grad()
    def clear(self) -> None:
        """Restore the frozen rows in `whole`."""
        # Other models can share `whole` and train other rows.
        self.whole[self.ids] = self.table[self.ids]

    def look_up(self, ids: torch.Tensor, *_: Any) -> torch.Tensor:
        """Return the embeddings of token ids. Only trained rows get a gradient."""
        found: torch.Tensor = _LookUp.apply(self.trained, self.whole, self.place, ids)  # type: ignore[no-untyped-call]
        return found


def trained_rows(wrappers: Sequence[Any]) -> TrainedRows | None:
    """Return the embedding rows that peft trains. None for unsupported wrappers."""
    # Supported wrappers have the same plain table and the same single active adapter.
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
    whole = derived_tensor("whole", adapters[0].base_layer.weight, lambda: torch.empty_like(table)).copy_(table)
    place = torch.full((len(whole),), -1)
    place[ids] = torch.arange(len(ids))
    return TrainedRows(adapters[0].trainable_tokens_delta[name], ids, table, whole, place)


class _LookUp(torch.autograd.Function):
    """Look up rows of `whole` (v, d) by token ids. The gradient goes to the trained rows (k, d)."""

    @staticmethod
    def forward(ctx: Any, trained: Any, whole: Any, place: Any, ids: Any) -> Any:
        ctx.save_for_backward(place[ids.flatten()])
        ctx.shape = trained.shape
        return functional.embedding(ids, whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (place_n,) = ctx.saved_tensors
        chosen = (place_n >= 0).nonzero().squeeze(1)
        of_trained = torch.zeros(ctx.shape)
        of_trained.index_add_(0, place_n[chosen], gradients[0].flatten(0, -2)[chosen].float())
        return of_trained, None, None, None
