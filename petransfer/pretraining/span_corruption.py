"""Span corruption (Raffel et al. 2020, section 3.1.4): the pretraining objective of the embedded family.

In the encoder's input each of several random spans of a window of text is replaced by a sentinel; the decoder's target
is the spans. Every window has the same number of masked tokens and of spans, so that all batches have one shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from petransfer.data.encoding import Encoded, Layout
from petransfer.training.batches import Batch


@dataclass(frozen=True)
class Noise:
    """Settings of span corruption.

    window: tokens of text in an example. density: masked share of the tokens. mean_span: mean tokens of a masked span.
    """

    window: int = 128
    density: float = 0.3
    mean_span: float = 4.0

    @property
    def masked(self) -> int:
        """Number of masked tokens in a window."""
        return round(self.window * self.density)

    @property
    def spans(self) -> int:
        """Number of masked spans in a window."""
        return max(1, round(self.masked / self.mean_span))

    @property
    def target_length(self) -> int:
        """Number of target tokens: the masked tokens, a sentinel for each span, and the end token."""
        return self.masked + self.spans + 1


class CorruptedWindows:
    """Endless epochs over the windows of one stream of token ids; an example depends only on (seed, position).

    Every epoch has its own order and offset of the windows.
    """

    def __init__(
        self, ids: np.ndarray, noise: Noise, batch_size: int, seed: int, layout: Layout, sentinels: list[int], eos: int
    ) -> None:
        self._ids, self._noise, self._batch_size, self._seed = ids, noise, batch_size, seed
        self._layout, self._sentinels, self._eos = layout, np.array(sentinels, dtype=np.int64), eos
        self._windows = len(ids) // noise.window - 1
        self._order_of: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int, process: int, processes: int) -> Batch:
        """Return this process's examples of one step."""
        first = step * self._batch_size
        mine = range(first + process, first + self._batch_size, processes)
        return Batch([self._at(index) for index in mine], self._batch_size * self._noise.target_length, self._layout)

    def _at(self, position: int) -> Encoded:
        epoch, place = divmod(position, self._windows)
        rng = np.random.default_rng([self._seed, 1, position])
        start = self._offset(epoch) + int(self._order(epoch)[place]) * self._noise.window
        return corrupt(
            self._ids[start : start + self._noise.window].astype(np.int64), self._noise, rng, self._sentinels, self._eos
        )

    def _offset(self, epoch: int) -> int:
        return int(np.random.default_rng([self._seed, 2, epoch]).integers(self._noise.window))

    def _order(self, epoch: int) -> np.ndarray:
        if self._order_of[0] != epoch:
            self._order_of = (epoch, np.random.default_rng([self._seed, 3, epoch]).permutation(self._windows))
        return self._order_of[1]


def corrupt(window: np.ndarray, noise: Noise, rng: np.random.Generator, sentinels: np.ndarray, eos: int) -> Encoded:
    """Return the input and the target of one window with masked spans; both end with `eos`."""
    masked = _partition(noise.masked, noise.spans, rng)
    kept = _partition(len(window) - noise.masked, noise.spans, rng)
    source: list[np.ndarray] = []
    target: list[np.ndarray] = []
    at = 0
    for index, (keep, mask) in enumerate(zip(kept, masked, strict=True)):
        mark = sentinels[index : index + 1]
        source += [window[at : at + keep], mark]
        target += [mark, window[at + keep : at + keep + mask]]
        at += keep + mask
    end = np.array([eos])
    return Encoded(tuple(np.concatenate([*source, end]).tolist()), tuple(np.concatenate([*target, end]).tolist()))


def _partition(total: int, parts: int, rng: np.random.Generator) -> Iterator[int]:
    """Cut `total` at random into `parts` whole numbers of at least 1."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    edges = np.concatenate([[0], cuts, [total]])
    return iter(np.diff(edges).tolist())
