"""`MetaAutocast` keeps the tensors on the meta device that `torch.autocast` keeps on a real device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from petransfer.memory.meta_autocast import MetaAutocast

WIDTH, HEADS, FEED = 16, 2, 48
TOKENS = 2 * 12  # two rows of 12 tokens


class Norm(nn.Module):
    """T5's norm, which computes in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.weight * (rows * torch.rsqrt(rows.float().pow(2).mean(-1, keepdim=True) + 1e-6))


class Layer(nn.Module):
    """A layer of a transformer with T5's gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.first, self.second = Norm(), Norm()
        self.gate, self.up = nn.Linear(WIDTH, FEED, bias=False), nn.Linear(WIDTH, FEED, bias=False)
        self.down = nn.Linear(FEED, WIDTH, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        normed, shape = self.first(rows), (len(rows), -1, HEADS, WIDTH // HEADS)
        query, key, value = (layer(normed).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = functional.softmax(query @ key.transpose(2, 3), dim=-1)
        rows = rows + self.out((weights @ value).transpose(1, 2).reshape(rows.shape))
        normed = self.second(rows)
        return rows + self.down(functional.gelu(self.gate(normed), approximate="tanh") * self.up(normed))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(WIDTH, 50, bias=False)
        self.head.weight = self.embeddings.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.embeddings(ids)
        for layer in self.layers:
            rows = layer(rows)
        logits: torch.Tensor = self.head(rows)
        return logits


def kept(model: nn.Module, given: torch.Tensor, context: Any) -> dict[torch.dtype, int]:
    """Return the bytes by dtype that a forward pass keeps for the backward pass, without the parameters."""
    storages: dict[int, tuple[torch.UntypedStorage, torch.dtype]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage, tensor.dtype
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), context:
        out = model(given)
    assert out.dtype == torch.bfloat16
    own = {value.untyped_storage()._cdata for value in model.parameters()}
    found: dict[torch.dtype, int] = {}
    for key, (storage, dtype) in storages.items():
        if key not in own:
            found[dtype] = found.get(dtype, 0) + storage.nbytes()
    return found


def on_meta(make: Any) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = make()
    return made


def test_meta_autocast_keeps_as_many_bytes_per_dtype_as_autocast_on_a_cpu() -> None:
    ids = torch.ones(2, 12, dtype=torch.long)
    real = kept(Model(), ids, torch.autocast("cpu", torch.bfloat16))
    assert kept(on_meta(Model), ids.to("meta"), MetaAutocast("cpu")) == real


def test_a_weight_is_copied_to_bf16_once_and_an_input_at_each_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            rows = rows * 2
            return self.layer(rows) + self.layer(rows)

    rows = torch.ones(TOKENS, WIDTH, device="meta")
    copies = 2 * (WIDTH * WIDTH + 2 * TOKENS * WIDTH)
    assert kept(on_meta(Twice), rows.requires_grad_(), MetaAutocast("cuda"))[torch.bfloat16] == copies


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cpu", torch.bfloat16)])
def test_only_a_card_computes_powers_softmax_and_sums_in_fp32(device: str, dtype: torch.dtype) -> None:
    rows = torch.ones(2, WIDTH, dtype=torch.bfloat16, device="meta")
    with MetaAutocast(device):
        found = [torch.pow(rows, 3.0), rows**2, functional.softmax(rows, -1), rows.sum(-1)]
        assert torch.tanh(rows).dtype == torch.bfloat16
    assert [value.dtype for value in found] == [dtype] * 4
