"""T5's forward pass over real tokens only: padding is there in the attention and nowhere else.

Modules are called as transformers calls them, so adapters act and dropout is drawn; what is left out are the masks,
caches and padded rows around them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import T5ForConditionalGeneration

from petransfer.training.batches import IGNORED, Tensors


@dataclass(frozen=True)
class Places:
    """Where the n tokens of a padded batch (rows, width) stand; at (n,) counts through the flattened batch."""

    at: torch.Tensor
    rows: int
    width: int

    @classmethod
    def of(cls, real_bt: torch.Tensor) -> Places:
        """Of a mask."""
        return cls(real_bt.flatten().nonzero().squeeze(1), *real_bt.shape)

    def spread(self, hidden_nd: torch.Tensor, heads: int) -> torch.Tensor:
        """(n, d) to (rows, heads, width, d / heads), with zeros where no token is."""
        if len(self.at) == self.rows * self.width:
            padded = hidden_nd
        else:
            padded = hidden_nd.new_zeros(self.rows * self.width, hidden_nd.shape[1]).index_copy(0, self.at, hidden_nd)
        return padded.view(self.rows, self.width, heads, -1).transpose(1, 2)

    def gather(self, padded_bhtd: torch.Tensor) -> torch.Tensor:
        """The way back."""
        flat = padded_bhtd.transpose(1, 2).reshape(self.rows * self.width, -1)
        return flat if len(self.at) == len(flat) else flat.index_select(0, self.at)


def can_pack(base: Any) -> bool:
    """Whether `packed_hidden` knows the model."""
    return type(base) is T5ForConditionalGeneration and base.config._attn_implementation in ("sdpa", "eager")


def draws(base: Any) -> bool:
    """Whether training draws dropout: by the shape of what goes in, so that packed it would be another draw."""
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in base.modules())


def packed_hidden(base: Any, batch: Tensors) -> torch.Tensor:
    """What goes into the head at the positions that labels ask for, row by row: (n, d)."""
    real_bs = batch["attention_mask"].bool()
    source, target = Places.of(real_bs), Places.of(batch["labels"] != IGNORED)
    read_nd = _tokens(base.encoder, batch["input_ids"], source)
    blind_b11s, least = read_nd.new_zeros(real_bs.shape)[:, None, None], torch.finfo(read_nd.dtype).min
    blind_b11s.masked_fill_(~real_bs[:, None, None], least)
    read_nd = _stack(base.encoder, read_nd, source, _bias(base.encoder, source.width) + blind_b11s, None, None)
    # a padded target stands behind the real ones, which therefore never see it
    future = read_nd.new_full((target.width, target.width), least).triu_(1)
    hidden_nd = _tokens(base.decoder, batch["decoder_input_ids"], target)
    bias = _bias(base.decoder, target.width) + future
    hidden_nd = _stack(base.decoder, hidden_nd, target, bias, (read_nd, source), blind_b11s)
    return hidden_nd * base.model_dim**-0.5 if base.config.scale_decoder_outputs else hidden_nd


def _tokens(stack: Any, ids_bt: torch.Tensor, places: Places) -> torch.Tensor:
    embedded: torch.Tensor = stack.embed_tokens(ids_bt.flatten().index_select(0, places.at)[None])
    return embedded[0]


def _bias(stack: Any, width: int) -> torch.Tensor:
    """(1, heads, width, width)"""
    bias: torch.Tensor = stack.block[0].layer[0].SelfAttention.compute_bias(width, width)
    return bias


def _stack(stack: Any, hidden_nd: Any, places: Places, bias: Any, read: Any, blind: Any) -> torch.Tensor:
    hidden_nd = stack.dropout(hidden_nd)
    for block in stack.block:
        given = (block, hidden_nd, places, bias, read, blind)
        if block.gradient_checkpointing and block.training:
            hidden_nd = checkpoint(_block, *given, use_reentrant=False)
        else:
            hidden_nd = _block(*given)
    found: torch.Tensor = stack.dropout(stack.final_layer_norm(hidden_nd))
    return found


def _block(block: Any, hidden_nd: Any, places: Places, bias: Any, read: Any, blind: Any) -> Any:
    own, *cross, dense = block.layer
    normed_nd = own.layer_norm(hidden_nd)
    hidden_nd = hidden_nd + own.dropout(_attend(own.SelfAttention, normed_nd, normed_nd, places, places, bias))
    for layer in cross:
        normed_nd = layer.layer_norm(hidden_nd)
        heard_nd = _attend(layer.EncDecAttention, normed_nd, read[0], places, read[1], blind)
        hidden_nd = hidden_nd + layer.dropout(heard_nd)
    return dense(hidden_nd)


def _attend(attention: Any, asking: Any, asked: Any, places: Places, others: Places, bias: Any) -> torch.Tensor:
    """asking (n, d) looks at asked (m, d); bias is added to the scores, which are not scaled."""
    heads = attention.n_heads
    query = places.spread(attention.q(asking), heads)
    key, value = others.spread(attention.k(asked), heads), others.spread(attention.v(asked), heads)
    dropout = attention.dropout if attention.training else 0.0
    wide = bias.expand(places.rows, heads, places.width, others.width)
    # in fp32, where the gradient of small attentions takes a fifth of what it takes in bf16 on a CPU
    query, key, value = query.float(), key.float(), value.float()
    heard = functional.scaled_dot_product_attention(query, key, value, wide.float(), dropout_p=dropout, scale=1.0)
    found: torch.Tensor = attention.o(places.gather(heard.to(asking.dtype)))
    return found
