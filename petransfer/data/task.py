"""Examples, the three parts of a split, and the interface of a task."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Example:
    """One input and the target that a model should generate.

    Args:
        index: The number of the example in the official file or in the task's documented order, counted from 0.
        input: The text that the model reads; of a chat, the JSON list of the messages before the answer.
        target: The text that the model should generate.
        category: Groups examples inside a split; results are also given per category.
        chat: How a chat is written: `template` by the tokenizer's chat template, `plain` as `role: content` lines;
            empty where the input is a text.
    """

    index: int
    input: str
    target: str
    category: str
    chat: str = ""


PARTS = ("train", "dev", "test")


def row_name(part: str, index: int) -> str:
    """Return the name of an example of train, dev or test in errors. index: the example's own."""
    return f"{part} row {index + 1}"


@dataclass(frozen=True)
class SplitData:
    """The three parts of a split, in memory or on the disk. Nothing may be chosen by looking at `test`.

    Args:
        train, dev, test: The examples.
        labels: All targets that occur, where the task knows them.
        row_name: Returns the name of an example in errors, from its part and index: of the user's own files, the file
            and line.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    labels: tuple[str, ...] = ()
    row_name: Callable[[str, int], str] = row_name


class Task(Protocol):
    """A benchmark or the user's own data. The seed of a run never changes which examples a part has."""

    name: str
    splits: tuple[str, ...]

    def train_size(self, split: str) -> int:
        """Return the number of training examples of a split, if possible without reading any file."""
        ...

    def longest(self, split: str) -> tuple[int, int]:
        """Return the characters in the longest training input and target, if possible without reading any file."""
        ...

    def load(self, split: str) -> SplitData:
        """Return the examples of one split.

        Raises:
            UserError: The split is unknown, or its files are missing, changed or broken.
        """
        ...


def cut_dev(rows: Sequence[Example], size: int, salt: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Move `size` examples from the training rows to a dev part; return (train, dev) in the order of `rows`.

    Only inputs that occur once in `rows` are drawn, so that dev and train share no input, and a command that SCAN
    repeats many times (such as `jump` alone) stays in train.

    Args:
        rows: The training rows.
        size: The number of dev examples; at most half of the rows that can be drawn.
        salt: Decides the draw. The seed of a run does not, so that all runs of a study have the same dev examples.
    """
    counts = Counter(row.input for row in rows)
    single = [position for position, row in enumerate(rows) if counts[row.input] == 1]
    seed = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "big")
    drawn = set(random.Random(seed).sample(single, min(size, len(single) // 2)))
    train = tuple(row for position, row in enumerate(rows) if position not in drawn)
    dev = tuple(rows[position] for position in sorted(drawn))
    return train, dev
