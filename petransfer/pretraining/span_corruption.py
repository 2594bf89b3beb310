"""Span corruption (Raffel et al. 2020, section 3.1.4): the objective for pretraining T5.

Random spans of tokens in a window of text are masked. In the input, a sentinel token replaces each masked span. The
target has each sentinel, followed by the masked tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from petransfer.data.encoding import Encoded, Layout
from petransfer.recipe.pretraining import masked_spans, masked_tokens
from petransfer.training.batches import Batch


@dataclass(frozen=True)
class Noise:
    """Settings of span corruption.

    Attributes:
        window: Tokens of text in an example.
        density: Share of masked tokens, from 0 to 1.
        mean_span: Mean number of tokens of a masked span.
    """

    window: int = 128
    density: float = 0.3
    mean_span: float = 4.0

    @property
    def masked(self) -> int:
        """Number of masked tokens in a window."""
        return masked_tokens(self.window, self.density)

    @property
    def spans(self) -> int:
        """Number of masked spans in a window."""
        return masked_spans(self.window, self.density, self.mean_span)

    @property
    def target_length(self) -> int:
        """Number of target tokens: masked tokens, one sentinel per span, and the end token."""
        return self.masked + self.spans + 1


class CorruptedWindows:
    """Batches of text windows with masked spans, for any number of epochs.

    Every epoch has another random order of windows. An example depends only on the text, the seed and the example's
    number.
    """

    def __init__(
        self, ids: np.ndarray, noise: Noise, batch_size: int, seed: int, layout: Layout, sentinels: list[int], eos: int
    ) -> None:
        self._ids, self._noise, self._batch_size, self._seed = ids, noise, batch_size, seed
        self._layout, self._sentinels, self._eos = layout, np.array(sentinels, dtype=np.int64), eos
        self._windows = len(ids) // noise.window - 1
        self._order_of: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int, process: int, processes: int) -> Batch:
        """Return the examples of one step for process number `process` of `processes`."""
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
        # the first window of an epoch begins at a random position, so the windows differ between epochs
        return int(np.random.default_rng([self._seed, 2, epoch]).integers(self._noise.window))

    def _order(self, epoch: int) -> np.ndarray:
        if self._order_of[0] != epoch:
            self._order_of = (epoch, np.random.default_rng([self._seed, 3, epoch]).permutation(self._windows))
        return self._order_of[1]


def corrupt(window: np.ndarray, noise: Noise, rng: np.random.Generator, sentinels: np.ndarray, eos: int) -> Encoded:
    """Mask random spans of one window, and return the input and the target.

    Args:
        window: Token ids of text, of shape (noise.window,).
        noise: The number and the size of the masked spans.
        sentinels: Ids of the sentinel tokens; at least `noise.spans`.
        eos: The id of the end token of the input and of the target.
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
    """Return `parts` random positive whole numbers whose sum is `total`."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    edges = np.concatenate([[0], cuts, [total]])
    return iter(np.diff(edges).tolist())
