"""How a model family takes its examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a model family takes its examples.

    Args:
        encoder_decoder: Whether input and target are two sequences; otherwise the target follows the input in one.
        pad_id: Token id that fills up a batch.
        eos_id: Token id that ends a target.
        decoder_start_id: Token id that the decoder reads before the first target token (encoder-decoder only).
        decoder_prefix: Token ids that the decoder reads after that one, such as a target language. They are given in
            training, scoring and generation alike, and are no part of a target.
    """

    encoder_decoder: bool
    pad_id: int
    eos_id: int
    decoder_start_id: int = 0
    decoder_prefix: tuple[int, ...] = ()
