"""Report texts while `generate` is still generating them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from petransfer.data.encoding import decode

OnText = Callable[[int, str], None]
"""Called with the index of an input and the text that has been generated for it so far."""


class TextStream(BaseStreamer):  # type: ignore[misc]  # transformers exports it without types
    """A `streamer` for `generate` that calls `on_text` after each generated token.

    Args:
        indices: index of the input of each row of the batch, for `on_text`.
        end_ids: ids of the end tokens. After an end token, `on_text` is not called for the row.
    """

    def __init__(
        self, indices: Sequence[int], tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int], on_text: OnText
    ) -> None:
        self._indices, self._tokenizer, self._end_ids, self._on_text = indices, tokenizer, end_ids, on_text
        self._rows: list[list[int]] = [[] for _ in indices]
        self._ended = [False] * len(indices)
        self._reads_prompt = True  # the first call of `put` has the tokens that `generate` was given

    def put(self, value: torch.Tensor) -> None:
        """Receive the next token id of each row: shape (b,)."""
        if self._reads_prompt:
            self._reads_prompt = False
            return
        for row, token in enumerate(value.tolist()):
            self._ended[row] = self._ended[row] or token in self._end_ids
            if not self._ended[row]:
                self._rows[row].append(token)
                (text,) = decode([self._rows[row]], self._tokenizer)
                self._on_text(self._indices[row], text)

    def end(self) -> None:
        """Do nothing. transformers calls this method at the end of a batch."""
