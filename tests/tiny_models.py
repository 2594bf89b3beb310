"""Make checkpoints with random weights, one layer, 32 dimensions and the tokenizer of the nano family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petransfer.models.registry import NANO, registry


def keep(folder: Path, make: Callable[[int], Any]) -> Path:
    """Save the model `make(vocabulary size)` with random weights, and the tokenizer, in a folder."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NANO / "tokenizer")
    torch.manual_seed(99)
    make(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_t5(folder: Path) -> Path:
    """Save a T5 with one encoder layer, one decoder layer and 32 dimensions."""
    from transformers import T5Config, T5ForConditionalGeneration

    def make(tokens: int) -> Any:
        config = T5Config(
            vocab_size=tokens, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0.1,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return T5ForConditionalGeneration(config)

    return keep(folder, make)


def limit_t5_layers(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    """Limit the encoder and the decoder of every T5 of the registry to so many layers."""
    architectures = registry().architectures
    for name, fields in architectures.items():
        if fields["model_type"] == "t5":
            monkeypatch.setitem(architectures, name, fields | {"num_layers": layers})
