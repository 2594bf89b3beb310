"""What a task is: named splits, each of which gives training, dev and test examples."""

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
    """A benchmark. `load` is deterministic: no seed of a run changes which examples a part holds."""

    name: str
    splits: tuple[str, ...]

    def train_size(self, split: str) -> int:
        """How many training examples a split has, without reading any file."""
        ...

    def longest(self, split: str) -> tuple[int, int]:
        """The characters of the longest training input and target, without reading any file."""
        ...

    def load(self, split: str) -> SplitData:
        """The examples of one split.

        Raises:
            UserError: the split is unknown, or its files are missing, changed or broken.
        """
        ...


def cut_dev(rows: Sequence[Example], size: int, salt: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Cuts a dev part of `size` examples from training rows: (train, dev), both in the order of `rows`.

    Only inputs that occur once in `rows` are drawn, so that dev shares no input with train and an over-represented
    primitive (SCAN's bare `jump`) stays in train. The draw depends on `salt` alone, never on a run's seed: every arm
    and seed of a study is chosen by the same dev examples.
    """
    counts = Counter(row.input for row in rows)
    single = [position for position, row in enumerate(rows) if counts[row.input] == 1]
    seed = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "big")
    drawn = set(random.Random(seed).sample(single, min(size, len(single) // 2)))
    train = tuple(row for position, row in enumerate(rows) if position not in drawn)
    dev = tuple(rows[position] for position in sorted(drawn))
    return train, dev
