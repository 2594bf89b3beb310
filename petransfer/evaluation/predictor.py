"""Predict texts with a loaded model, with the prefix and the template that it was trained with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petransfer.data.encoding import encode_inputs
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
    """

    model: torch.nn.Module
    loaded: Loaded
    prefix: str
    template: str = ""

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
        inputs = [self.prefix + self._input(text) for text in texts]
        rows = encode_inputs(inputs, self.loaded.tokenizer, self.loaded.layout)
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
