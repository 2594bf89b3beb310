"""How a model reads an example: one or two token sequences, with special tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a model reads an example: one or two token sequences, with special tokens.

    Args:
        encoder_decoder: Whether input and target are two sequences. False: one sequence of input and target.
        pad_id: Token id of padding.
        eos_id: Token id that ends a target.
        decoder_start_id: Token id that the decoder reads before the first target token (encoder-decoder only).
        decoder_prefix: Token ids that the decoder reads after `decoder_start_id`, such as the token of the target
            language. They are used in training, scoring and generation, and do not belong to the target.
        input_end: Text after each input of a decoder-only model. petransfer trains with a line break, which separates
            input and target. It is empty for models that petransfer did not train, and ignored for chats.
    """

    encoder_decoder: bool
    pad_id: int
    eos_id: int
    decoder_start_id: int = 0
    decoder_prefix: tuple[int, ...] = ()
    input_end: str = "\n"
