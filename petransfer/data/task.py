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
        input: The text that the model reads. For a chat: the JSON list of the messages before the answer.
        target: The text that the model should generate.
        category: The group that the example belongs to inside its split. Results are also given per category.
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
    """Return the name of an example for error messages, such as `train row 1`.

    Args:
        part: `train`, `dev` or `test`.
        index: The `index` of the example, counted from 0. The name counts from 1.
    """
    return f"{part} row {index + 1}"


@dataclass(frozen=True)
class SplitData:
    """The examples of a split in three parts, in memory or on disk. `test` must not be used to choose any setting.

    Args:
        train, dev, test: The examples of each part.
        labels: All different targets; empty if the task does not know them.
        row_name: A function of (part, index). It returns the name of an example for error messages. For the user's own
            files, this is the file and the line.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    labels: tuple[str, ...] = ()
    row_name: Callable[[str, int], str] = row_name


class Task(Protocol):
    """A benchmark or the user's own data. The seed of a run never changes which examples belong to a part."""

    name: str
    splits: tuple[str, ...]

    def train_size(self, split: str) -> int:
        """Return the number of training examples of a split, if possible without reading any file."""
        ...

    def longest(self, split: str) -> tuple[int, int]:
        """Return the lengths in characters of the longest training input and the longest training target.

        If possible, no file is read.
        """
        ...

    def load(self, split: str) -> SplitData:
        """Return the examples of one split.

        Raises:
            UserError: The split is unknown, or its files are missing, changed or broken.
        """
        ...


def cut_dev(rows: Sequence[Example], size: int, salt: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Move `size` examples from the training rows to a dev part; return (train, dev), both in the order of `rows`.

    Only rows whose input occurs once in `rows` can be moved. So dev and train share no input, and a command that SCAN
    repeats many times (such as `jump` alone) stays in train.

    Args:
        rows: The training rows.
        size: The number of dev examples. At most half of the rows that can be moved are moved.
        salt: A text that determines which rows are drawn. The draw does not depend on the seed of a run, so all runs of
            a study have the same dev examples.
    """
    counts = Counter(row.input for row in rows)
    single = [position for position, row in enumerate(rows) if counts[row.input] == 1]
    seed = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "big")
    drawn = set(random.Random(seed).sample(single, min(size, len(single) // 2)))
    train = tuple(row for position, row in enumerate(rows) if position not in drawn)
    dev = tuple(rows[position] for position in sorted(drawn))
    return train, dev
