"""How a model reads an example: one or two token sequences, with special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# In the record of a checkpoint's configuration: the key of the end tokens other than the tokenizer's own end token. It
# is defined here because this module does not import torch.
OTHER_ENDS = "eos_token_id (generation_config.json)"


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
        other_end_ids: Further token ids at which generation stops. Targets never end with them in training.
    """

    encoder_decoder: bool
    pad_id: int
    eos_id: int
    decoder_start_id: int = 0
    decoder_prefix: tuple[int, ...] = ()
    input_end: str = "\n"
    other_end_ids: tuple[int, ...] = ()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids of all tokens at which generation stops. The first one ends the targets in training."""
        return (self.eos_id, *self.other_end_ids)


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the tokens that decoded text never shows, by id."""
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    added = {at: token.content for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    return dict(named) | added
