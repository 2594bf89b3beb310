"""Benchmarks whose parts are tab-separated files with one example a line: sentence, logical form, type.

The rows keep the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from petransfer.data.benchmark_files import Source, locate, read_rows
from petransfer.data.task import Example, SplitData
from petransfer.errors import unknown

SPLITS: tuple[str, ...] = ("gen", "test")


def parse_row(line: str) -> tuple[str, str, str]:
    """Return (sentence, logical form, type) of one tab-separated line.

    Raises:
        ValueError: The line does not have three columns, or one of them is empty.
    """
    columns = line.split("\t")
    if len(columns) != 3:
        raise ValueError(f"expected 3 tab-separated columns (sentence, logical form, type), found {len(columns)}")
    for name, text in zip(("sentence", "logical form", "type"), columns, strict=True):
        if not text.strip():
            raise ValueError(f"the {name} is empty")
    sentence, logical_form, kind = columns
    return sentence, logical_form, kind


@dataclass(frozen=True)
class TabularTask:
    """A benchmark with the splits `gen` and `test`; each has the test set of its name.

    Both splits have the same training and dev rows. `gen` is the generalization set, `test` has the distribution of the
    training rows. The category of an example is the third column of its file.

    Args:
        data_dir: The folder in which files are looked for, plain or `.xz`, before the cache and the download.
        sources: The published files by part (train, dev, test, gen).
        folders: The folders below `data_dir` that may hold a file.
        training_rows, longest_row: Of the training file, so that a study can be planned without it.
    """

    data_dir: Path | None = None
    name = ""
    splits = SPLITS
    sources: ClassVar[Mapping[str, Source]]
    folders: ClassVar[tuple[str, ...]]
    training_rows: ClassVar[int]
    longest_row: ClassVar[tuple[int, int]]

    def train_size(self, split: str) -> int:
        """Return the rows of the training file, which all splits share."""
        return self.training_rows

    def longest(self, split: str) -> tuple[int, int]:
        """Return the characters in the longest training input and target. All splits share one training set."""
        return self.longest_row

    def load(self, split: str) -> SplitData:
        """Return the examples of `gen` or `test`, in the order of the official files.

        Raises:
            UserError: The split is unknown, or a file is missing, changed or broken.
        """
        if split not in self.splits:
            raise unknown(f"split of {self.name}", split, self.splits)
        return SplitData(train=self.read("train"), dev=self.read("dev"), test=self.read(split))

    def read(self, part: str) -> tuple[Example, ...]:
        """Return the examples of one part."""
        source = self.sources[part]
        rows = read_rows(self.locate(source), parse_row, source.sha256)
        return tuple(Example(index, *row) for index, row in enumerate(rows))

    def locate(self, source: Source) -> Path:
        """Return the path of a file, which is downloaded if it is nowhere."""
        name = Path(source.place).name
        return locate(source, self.data_dir, [f"{folder}{name}" for folder in (*self.folders, "")])
