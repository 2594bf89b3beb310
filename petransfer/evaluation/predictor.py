"""Predict texts with a loaded model, with the prefix and the template that it was trained with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from petransfer.data.bad_rows import BadRow
from petransfer.data.chat import chat_layout
from petransfer.data.encoding import encode_inputs, input_text
from petransfer.data.task import Example
from petransfer.data.templates import fields_of, render
from petransfer.errors import UserError
from petransfer.evaluation.generation import generate, room
from petransfer.models.lengths import positions
from petransfer.models.loading import Loaded


@dataclass(frozen=True)
class Predictor:
    """A model that generates greedily.

    model: with its adapter, if any. loaded: the base, its tokenizer and layout. prefix: goes before every input.
    template: makes an input of a row's columns; empty where inputs are plain texts.
    chat: how an input is written as a chat, of which it is the user's message or the JSON list of the messages:
        `template` or `plain`; empty for plain texts.
    """

    model: torch.nn.Module
    loaded: Loaded
    prefix: str
    template: str = ""
    chat: str = ""

    def __post_init__(self) -> None:
        layout = chat_layout(self.loaded.tokenizer, self.loaded.layout, self.chat)
        object.__setattr__(self, "loaded", replace(self.loaded, layout=layout))

    def __call__(self, texts: Sequence[str], max_new_tokens: int = 512) -> list[str]:
        """Return the generated texts, in order.

        Args:
            texts: inputs. Where the template names several columns, each is a JSON object with them.
            max_new_tokens: the longest generated text in tokens; less where the model has fewer positions.

        Raises:
            UserError: a text is not such an object, or has as many tokens as the model has positions.
        """
        if not texts:
            return []
        examples = [Example(at, self._input(text), "", "", self.chat) for at, text in enumerate(texts)]
        try:
            inputs = [input_text(example, self.prefix, self.loaded.tokenizer) for example in examples]
        except BadRow as problem:
            raise UserError(f"an input cannot be used: {problem}") from None
        rows = encode_inputs(inputs, self.loaded.tokenizer, self.loaded.layout, is_rendered=self.chat == "template")
        by_limit: dict[int, list[int]] = {}  # a batch is generated up to the largest limit in it
        for at, row in enumerate(rows):
            by_limit.setdefault(self._limit(texts[at], len(row), max_new_tokens), []).append(at)
        generated: dict[int, str] = {}
        for limit, chosen in by_limit.items():
            found = generate(self.model, self.loaded, [rows[at] for at in chosen], limit)
            generated |= zip(chosen, found, strict=True)
        return [generated[at] for at in range(len(rows))]

    def _limit(self, text: str, tokens: int, most: int) -> int:
        left = room(self.model, self.loaded, tokens)
        if left is None:
            return most
        if left < 1:
            has = positions(self.loaded.model.config)
            raise UserError(
                f"the input {text[:40]!r} has {tokens:,} tokens; the model has {has:,} positions; shorten it"
            )
        return min(most, left)

    def _input(self, text: str) -> str:
        if not self.template:
            return text
        columns = fields_of(self.template)
        if len(columns) == 1:
            return render(self.template, {columns[0]: text})
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            values = json.loads(text)
            return render(self.template, {column: str(values[column]) for column in columns})
        raise UserError(
            f"the input {text[:40]!r} is not a JSON object with {', '.join(columns)}, the columns of the template"
        )
