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
        index: Number of the example in the official file or in the task's documented order, counted from 0.
        input: Text that the model reads. For a chat: the JSON list of the messages before the answer.
        target: Text that the model should generate.
        category: Group of the example inside its split. Results are also given per category.
        chat: How a chat is converted to text: `template` for the tokenizer's chat template, `plain` for
            `role: content` lines. Empty if the input is not a chat.
    """

    index: int
    input: str
    target: str
    category: str
    chat: str = ""


PARTS = ("train", "dev", "test")


def row_name(part: str, index: int) -> str:
    """Return the name of an example for error messages: index 0 of `train` is `train row 1`."""
    return f"{part} row {index + 1}"


@dataclass(frozen=True)
class SplitData:
    """The examples of a split in three parts, in memory or on disk. `test` must not be used to choose any setting.

    Args:
        train, dev, test: Examples of each part.
        labels: All different targets. Empty if the task does not know them.
        row_name: Function of (part, index) that returns the name of an example for error messages. In the user's own
            files, the name is the file and the line.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    labels: tuple[str, ...] = ()
    row_name: Callable[[str, int], str] = row_name


class Task(Protocol):
    """A benchmark or the user's own data. The parts of a split do not depend on the seed of a run."""

    name: str
    splits: tuple[str, ...]

    def train_size(self, split: str) -> int:
        """Return the number of training examples of a split."""
        ...

    def longest(self, split: str) -> tuple[int, int]:
        """Return the lengths in characters of the longest training input and the longest training target."""
        ...

    def load(self, split: str) -> SplitData:
        """Return the examples of one split.

        Raises:
            UserError: The split is unknown, or its files are missing, changed or broken.
        """
        ...


def cut_dev(rows: Sequence[Example], size: int, salt: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Move `size` examples from the training rows to a dev part, and return (train, dev).

    Train and dev have no common input. The order of `rows` is kept.

    Args:
        size: Number of dev examples. At most half of the rows with a unique input are moved.
        salt: Text that determines the drawn rows. The seed of a run has no influence.
    """
    counts = Counter(row.input for row in rows)
    # a command that SCAN repeats many times (such as `jump` alone) stays in train
    single = [position for position, row in enumerate(rows) if counts[row.input] == 1]
    seed = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "big")
    drawn = set(random.Random(seed).sample(single, min(size, len(single) // 2)))
    train = tuple(row for position, row in enumerate(rows) if position not in drawn)
    dev = tuple(rows[position] for position in sorted(drawn))
    return train, dev
