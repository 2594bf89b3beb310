"""Examples turned into pieces when they are asked for, all looked through beforehand: training meets no bad one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import overload

from transformers import PreTrainedTokenizerBase

from petransfer.data.encoding import Encoded, Layout, LostTarget, encode_examples
from petransfer.data.task import Example, row_name
from petransfer.errors import UserError

# So many examples are kept as pieces; more are turned into pieces again each time they are met.
KEPT = 20_000
_AT_ONCE = 1000

Check = Callable[[Sequence[Example], Sequence[Encoded]], None]


class LazilyEncoded(Sequence[Encoded]):
    """The pieces of examples that stay on the disk."""

    def __init__(
        self, examples: Sequence[Example], prefix: str, tokenizer: PreTrainedTokenizerBase, layout: Layout
    ) -> None:
        self.examples, self._prefix, self._tokenizer, self._layout = examples, prefix, tokenizer, layout

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...
    def __getitem__(self, at: int | slice) -> Encoded | list[Encoded]:
        return self.take(range(*at.indices(len(self)))) if isinstance(at, slice) else self.take([at])[0]

    def take(self, positions: Iterable[int]) -> list[Encoded]:
        """Several at once, which a tokenizer does faster."""
        return encode_examples([self.examples[at] for at in positions], self._prefix, self._tokenizer, self._layout)


def take(encoded: Sequence[Encoded], positions: Sequence[int]) -> list[Encoded]:
    """The examples at these positions."""
    if isinstance(encoded, LazilyEncoded):
        return encoded.take(positions)
    return [encoded[at] for at in positions]


def encode_part(
    examples: Sequence[Example],
    prefix: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    check: Check,
    met: Callable[[], Iterable[int]] | None = None,
    name: Callable[[int], str] = functools.partial(row_name, "train"),
) -> tuple[Sequence[Encoded], set[int]]:
    """The examples as pieces, and which pieces occur in them.

    check: is given all of them, some at a time. met: the positions that training will meet; only these are looked
    through where the examples are too many to be kept. None: all. name: what errors call an example, by its index.

    Raises:
        UserError: a target does not come back from its pieces, or `check` refused an example.
    """
    lazy = LazilyEncoded(examples, prefix, tokenizer, layout)
    keep = len(examples) <= KEPT or isinstance(examples, tuple | list)
    positions = range(len(examples)) if keep or met is None else met()
    kept: list[Encoded] = []
    pieces: set[int] = set()
    for chunk in _chunks(positions):
        try:
            found = lazy.take(chunk)
        except LostTarget as error:
            raise UserError(f"{name(examples[chunk[error.at]].index)}: {error}") from None
        check([examples[at] for at in chunk], found)
        pieces.update(*(row.input_ids for row in found), *(row.target_ids for row in found))
        kept += found if keep else []
    return (kept if keep else lazy), pieces


def _chunks(positions: Iterable[int]) -> Iterable[list[int]]:
    chunk: list[int] = []
    for position in positions:
        chunk.append(position)
        if len(chunk) == _AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
