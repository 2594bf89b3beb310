"""Benchmarks in tab-separated files. Each line is one example: sentence, logical form, type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from petransfer.data.benchmark_files import PublishedFile, find_or_download, read_rows
from petransfer.data.task import Example, SplitData
from petransfer.errors import unknown

SPLITS: tuple[str, ...] = ("gen", "test")


def parse_row(line: str) -> tuple[str, str, str]:
    """Split one tab-separated line into (sentence, logical form, type)."""
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
    """A benchmark with the splits `gen` and `test`, which differ only in the test set.

    The test set of `gen` is the generalization set. The test set of `test` has the distribution of the training rows.
    The category of an example is the third column of its line.

    Args:
        data_dir: Folder that is searched first for files, plain or `.xz`. Missing files are read from the cache or
            downloaded.
        sources: Published file of each part (train, dev, test, gen).
        folders: Folders below `data_dir` that can contain the files.
        training_rows: Number of training rows.
        longest_row: Lengths in characters of the longest training input and the longest training target.
    """

    data_dir: Path | None = None
    name = ""
    splits = SPLITS
    sources: ClassVar[Mapping[str, PublishedFile]]
    folders: ClassVar[tuple[str, ...]]
    # stored here, because a study must be planned without the files
    training_rows: ClassVar[int]
    longest_row: ClassVar[tuple[int, int]]

    def train_size(self, split: str) -> int:
        return self.training_rows

    def longest(self, split: str) -> tuple[int, int]:
        """Return the lengths in characters of the longest training input and the longest training target."""
        return self.longest_row

    def load(self, split: str) -> SplitData:
        """Return the examples of `gen` or `test`, in the order of the official files."""
        if split not in self.splits:
            raise unknown(f"split of {self.name}", split, self.splits)
        return SplitData(train=self.read("train"), dev=self.read("dev"), test=self.read(split))

    def read(self, part: str) -> tuple[Example, ...]:
        """Return the examples of one part: `train`, `dev`, `test` or `gen`."""
        source = self.sources[part]
        rows = read_rows(self.find_or_download(source), parse_row, source.sha256)
        return tuple(Example(index, *row) for index, row in enumerate(rows))

    def find_or_download(self, source: PublishedFile) -> Path:
        """Return the path of a file in `data_dir` or in the cache. A missing file is downloaded."""
        name = Path(source.place).name
        return find_or_download(source, self.data_dir, [f"{folder}{name}" for folder in (*self.folders, "")])
