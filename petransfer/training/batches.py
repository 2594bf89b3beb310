"""Make training batches that depend only on the seed and the step, and cut them into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from petransfer.data.encoded_examples import take
from petransfer.data.encoding import Encoded, Layout

IGNORED = -100


Tensors = dict[str, torch.Tensor]
Collate = Callable[[Sequence[Encoded]], Tensors]


class BatchSource(Protocol):
    """Source of the batches of the training loop."""

    def batch(self, step: int, process: int, processes: int) -> Batch:
        """Return this process's part of the batch of one optimiser step.

        Args:
            step: the optimiser step, counted from 0.
            process: index of this process, counted from 0.
            processes: number of processes.
        """
        ...


@dataclass(frozen=True)
class Batch:
    """The examples of one optimiser step in one process.

    target_tokens: number of target tokens of the step, over all processes. The loss is divided by this number.
    collate: function that makes the tensors of a micro-batch. None means the function `collate` of this module.
    """

    examples: Sequence[Encoded]
    target_tokens: int
    layout: Layout
    collate: Collate | None = None

    def micro_batches(self, size: int, budget: int = 0) -> list[Tensors]:
        """Cut the batch into micro-batches of examples of similar length, which saves padding.

        Args:
            size: maximum number of examples in a micro-batch.
            budget: maximum number of tokens in a micro-batch, padding included. 0 means no limit. A longer example gets
                its own micro-batch.
        """
        make = self.collate or (lambda cut: collate(cut, self.layout))
        if budget:
            return [make(cut) for cut in _within(self.examples, size, budget, self.layout)]
        # Sort by target length first, because the logits of the targets need most of the memory.
        ordered = sorted(self.examples, key=lambda example: (len(example.target_ids), len(example.input_ids)))
        return [make(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def _within(examples: Sequence[Encoded], size: int, budget: int, layout: Layout) -> Iterator[list[Encoded]]:
    """Yield groups of examples of similar length, as large as `size` and `budget` allow."""
    cut: list[Encoded] = []
    widths: tuple[int, ...] = ()
    for example in sorted(examples, key=lambda example: _lengths(example, layout)):
        own = _lengths(example, layout)
        wider = tuple(map(max, widths, own)) if cut else own
        if cut and (len(cut) == size or (len(cut) + 1) * sum(wider) > budget):
            yield cut
            cut, wider = [], own
        cut.append(example)
        widths = wider
    if cut:
        yield cut


def _lengths(example: Encoded, layout: Layout) -> tuple[int, ...]:
    """Return an example's target and source lengths in tokens, or the joined length for a decoder-only model."""
    source, target = len(example.input_ids), len(example.target_ids)
    target += len(layout.decoder_prefix)
    return (target, source) if layout.encoder_decoder else (source + target - 1,)


class ShuffledExamples:
    """A `BatchSource` that repeats the training examples, in a new random order in each epoch.

    The order depends only on the seed and the epoch.
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        batch_size: int,
        seed: int,
        layout: Layout,
        collate: Collate | None = None,
    ) -> None:
        self._examples, self._batch_size, self._seed, self._layout = examples, batch_size, seed, layout
        self._collate = collate
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int, process: int, processes: int) -> Batch:
        first = step * self._batch_size
        chosen = take(self._examples, [self._at(position) for position in range(first, first + self._batch_size)])
        tokens = sum(len(example.target_ids) for example in chosen)
        return Batch(chosen[process::processes], tokens, self._layout, self._collate)

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._examples))
        return int(self._order(epoch)[offset])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:  # a batch can be from two epochs, so the order before is kept too
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = _order(len(self._examples), self._seed, epoch)
        return self._orders[epoch]


def used_examples(count: int, batch_size: int, steps: int, seed: int) -> Iterable[int]:
    """Return the indices of the examples of the first `steps` steps, in ascending order."""
    if steps * batch_size >= count:
        return range(count)
    return (int(at) for at in np.sort(_order(count, seed, 0)[: steps * batch_size]))


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def collate(examples: Sequence[Encoded], layout: Layout) -> Tensors:
    """Make the padded tensors of one micro-batch.

    Encoder-decoder: input_ids and attention_mask (batch, source), decoder_input_ids and labels (batch, target).
    Decoder-only: input_ids, attention_mask and labels (batch, source + target - 1).
    Labels are already shifted: `labels[:, t]` is the next token after position t. Positions without a label have -100.
    """
    if layout.encoder_decoder:
        source = [example.input_ids for example in examples]
        target = [example.target_ids for example in examples]
        given = layout.decoder_prefix
        read = [(layout.decoder_start_id, *given, *ids[:-1]) for ids in target]
        target = [(*(IGNORED for _ in given), *ids) for ids in target]
        return {
            "input_ids": _pad(source, layout.pad_id),
            "attention_mask": _mask(source),
            "decoder_input_ids": _pad(read, layout.pad_id),
            "labels": _pad(target, IGNORED),
        }
    joined = [example.input_ids + example.target_ids[:-1] for example in examples]
    labels = [(IGNORED,) * (len(example.input_ids) - 1) + example.target_ids for example in examples]
    return {
        "input_ids": _pad(joined, layout.pad_id),
        "attention_mask": _mask(joined),
        "labels": _pad(labels, IGNORED),
    }


def _pad(rows: Sequence[tuple[int, ...]], filler: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + (filler,) * (width - len(row)) for row in rows])


def _mask(rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
    return _pad([(1,) * len(row) for row in rows], 0)
