"""Compute T5's forward pass over real tokens only. Padding is added only inside the attention.

The modules of the model are called as in transformers: adapters and dropout work.
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
class TokenPositions:
    """Positions of the n real tokens of a padded batch (rows, width).

    index: (n,), position of each token in the flattened batch.
    """

    index: torch.Tensor
    rows: int
    width: int

    @classmethod
    def of(cls, real_bt: torch.Tensor) -> TokenPositions:
        """Return the positions of the real tokens, where the mask (rows, width) is true."""
        return cls(real_bt.flatten().nonzero().squeeze(1), *real_bt.shape)

    def pad(self, hidden_nd: torch.Tensor, heads: int) -> torch.Tensor:
        """Reshape (n, d) to (rows, heads, width, d / heads), with zeros for padding."""
        if len(self.index) == self.rows * self.width:
            padded = hidden_nd
        else:
            empty = hidden_nd.new_zeros(self.rows * self.width, hidden_nd.shape[1])
            padded = empty.index_copy(0, self.index, hidden_nd)
        return padded.view(self.rows, self.width, heads, -1).transpose(1, 2)

    def unpad(self, padded_bhtd: torch.Tensor) -> torch.Tensor:
        """Reshape the result of `pad` back to (n, d)."""
        flat = padded_bhtd.transpose(1, 2).reshape(self.rows * self.width, -1)
        return flat if len(self.index) == len(flat) else flat.index_select(0, self.index)


def can_skip_padding(base: Any) -> bool:
    """Return whether `unpadded_hidden` supports the model."""
    return type(base) is T5ForConditionalGeneration and base.config._attn_implementation in ("sdpa", "eager")


def has_dropout(base: Any) -> bool:
    """Return whether the model trains with dropout."""
    # Dropout masks depend on the shape of the input: without padding, the masks would be different.
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in base.modules())


def unpadded_hidden(base: Any, batch: Tensors) -> torch.Tensor:
    """Return the input of the output head at the positions that have a label, row by row: (n, d)."""
    real_bs = batch["attention_mask"].bool()
    source, target = TokenPositions.of(real_bs), TokenPositions.of(batch["labels"] != IGNORED)
    encoded_nd = _embed(base.encoder, batch["input_ids"], source)
    lowest = torch.finfo(encoded_nd.dtype).min
    padding_mask_b11s = encoded_nd.new_zeros(real_bs.shape)[:, None, None]
    padding_mask_b11s.masked_fill_(~real_bs[:, None, None], lowest)
    encoder_bias = _position_bias(base.encoder, source.width) + padding_mask_b11s
    encoded_nd = _run_stack(base.encoder, encoded_nd, source, encoder_bias, None, None)
    # Padding is after the real target tokens, so the causal mask already excludes it.
    causal_mask = encoded_nd.new_full((target.width, target.width), lowest).triu_(1)
    hidden_nd = _embed(base.decoder, batch["decoder_input_ids"], target)
    decoder_bias = _position_bias(base.decoder, target.width) + causal_mask
    hidden_nd = _run_stack(base.decoder, hidden_nd, target, decoder_bias, (encoded_nd, source), padding_mask_b11s)
    return hidden_nd * base.model_dim**-0.5 if base.config.scale_decoder_outputs else hidden_nd


def _embed(stack: Any, ids_bt: torch.Tensor, positions: TokenPositions) -> torch.Tensor:
    embedded: torch.Tensor = stack.embed_tokens(ids_bt.flatten().index_select(0, positions.index)[None])
    return embedded[0]


def _position_bias(stack: Any, width: int) -> torch.Tensor:
    """Return T5's relative position bias: (1, heads, width, width)."""
    bias: torch.Tensor = stack.block[0].layer[0].SelfAttention.compute_bias(width, width)
    return bias


def _run_stack(
    stack: Any, hidden_nd: Any, positions: TokenPositions, bias: Any, encoded: Any, cross_mask: Any
) -> torch.Tensor:
    """Run the encoder or the decoder. In the encoder, `encoded` and `cross_mask` are None."""
    # `encoded` is the encoder's output with its `TokenPositions`, for the decoder's cross-attention.
    hidden_nd = stack.dropout(hidden_nd)
    for block in stack.block:
        arguments = (block, hidden_nd, positions, bias, encoded, cross_mask)
        if block.gradient_checkpointing and block.training:
            hidden_nd = checkpoint(_run_block, *arguments, use_reentrant=False)
        else:
            hidden_nd = _run_block(*arguments)
    output: torch.Tensor = stack.dropout(stack.final_layer_norm(hidden_nd))
    return output


def _run_block(block: Any, hidden_nd: Any, positions: TokenPositions, bias: Any, encoded: Any, cross_mask: Any) -> Any:
    own, *cross, feed_forward = block.layer
    normed_nd = own.layer_norm(hidden_nd)
    attended_nd = _attend(own.SelfAttention, normed_nd, normed_nd, positions, positions, bias)
    hidden_nd = hidden_nd + own.dropout(attended_nd)
    for layer in cross:
        normed_nd = layer.layer_norm(hidden_nd)
        attended_nd = _attend(layer.EncDecAttention, normed_nd, encoded[0], positions, encoded[1], cross_mask)
        hidden_nd = hidden_nd + layer.dropout(attended_nd)
    return feed_forward(hidden_nd)


def _attend(
    attention: Any,
    queries_nd: Any,
    keys_md: Any,
    query_positions: TokenPositions,
    key_positions: TokenPositions,
    bias: Any,
) -> torch.Tensor:
    """Attend from queries (n, d) to keys (m, d). T5 adds the bias to the scores and does not scale them."""
    heads = attention.n_heads
    query = query_positions.pad(attention.q(queries_nd), heads)
    key, value = (key_positions.pad(project(keys_md), heads) for project in (attention.k, attention.v))
    dropout = attention.dropout if attention.training else 0.0
    expanded = bias.expand(query_positions.rows, heads, query_positions.width, key_positions.width)
    # Use fp32: on a CPU the backward pass of small attentions then takes only a fifth of the time that bf16 takes.
    query, key, value = query.float(), key.float(), value.float()
    attended = functional.scaled_dot_product_attention(
        query, key, value, expanded.float(), dropout_p=dropout, scale=1.0
    )
    output: torch.Tensor = attention.o(query_positions.unpad(attended.to(queries_nd.dtype)))
    return output
