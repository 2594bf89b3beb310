"""Span corruption (Raffel et al. 2020, section 3.1.4): the pretraining objective of the embedded family.

An example is a window of text in which random spans of tokens are masked. In the encoder's input, a sentinel token
replaces each masked span. The decoder's target is the masked spans, each after its sentinel. Every window has the same
number of masked tokens and the same number of spans, so that all batches have one shape.
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

    window: tokens of text in an example.
    density: share of the window's tokens that is masked, from 0 to 1.
    mean_span: mean number of tokens of a masked span.
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
        """Number of target tokens in a window: the masked tokens, a sentinel for each span, and the end token."""
        return self.masked + self.spans + 1


class CorruptedWindows:
    """The batches of a pretraining: windows of one text with masked spans, for any number of epochs.

    Every epoch has its own random order of the windows, and its own random position in the text at which the first
    window begins. An example depends only on the text, the seed and the example's number, counted over all steps.
    """

    def __init__(
        self, ids: np.ndarray, noise: Noise, batch_size: int, seed: int, layout: Layout, sentinels: list[int], eos: int
    ) -> None:
        self._ids, self._noise, self._batch_size, self._seed = ids, noise, batch_size, seed
        self._layout, self._sentinels, self._eos = layout, np.array(sentinels, dtype=np.int64), eos
        self._windows = len(ids) // noise.window - 1
        self._order_of: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int, process: int, processes: int) -> Batch:
        """Return the examples of one step that belong to process number `process` of `processes` processes."""
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
    """Mask random spans of one window, and return the input and the target. Both end with the token `eos`.

    Args:
        window: token ids of text, of shape (noise.window,).
        noise: the number and the size of the masked spans.
        rng: the source of random numbers.
        sentinels: ids of the sentinel tokens; at least `noise.spans`.
        eos: the id of the end token.
    """
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
    """Return `parts` random whole numbers of at least 1 whose sum is `total`."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    edges = np.concatenate([[0], cuts, [total]])
    return iter(np.diff(edges).tolist())
