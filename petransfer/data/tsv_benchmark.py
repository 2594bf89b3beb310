"""Tasks whose parts are published as tab-separated files: sentence, logical form, type, one example a line.

The files are used as they are and in their order; nothing is drawn here.
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
    """(sentence, logical form, type) of one tab-separated line.

    Raises:
        ValueError: the line has not three columns, or one of them is empty.
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
    """Split `gen` is scored on the generalisation set, split `test` on the in-distribution test set. Both train on the
    same rows and choose on the same dev rows. A category is the third column of a file.

    data_dir: where the files are looked for, plain or `.xz`, before the cache and the download.
    sources: the published files, by part (train, dev, test, gen). folders: where below `data_dir` a file may lie.
    training_rows, longest_row: of the training file, so that a study can be planned without it.
    """

    data_dir: Path | None = None
    name = ""
    splits = SPLITS
    sources: ClassVar[Mapping[str, Source]]
    folders: ClassVar[tuple[str, ...]]
    training_rows: ClassVar[int]
    longest_row: ClassVar[tuple[int, int]]

    def train_size(self, split: str) -> int:
        """The rows of the training file, whatever the split."""
        return self.training_rows

    def longest(self, split: str) -> tuple[int, int]:
        """Those of the training file, which all splits share."""
        return self.longest_row

    def load(self, split: str) -> SplitData:
        """The examples of `gen` or `test`, in the order of the official files.

        Raises:
            UserError: the split is unknown, or a file is missing, changed or broken.
        """
        if split not in self.splits:
            raise unknown(f"split of {self.name}", split, self.splits)
        return SplitData(train=self.read("train"), dev=self.read("dev"), test=self.read(split))

    def read(self, part: str) -> tuple[Example, ...]:
        """The examples of one part."""
        source = self.sources[part]
        rows = read_rows(self.locate(source), parse_row, source.sha256)
        return tuple(Example(index, *row) for index, row in enumerate(rows))

    def locate(self, source: Source) -> Path:
        """Where a file lies, after a download if need be."""
        name = Path(source.place).name
        return locate(source, self.data_dir, [f"{folder}{name}" for folder in (*self.folders, "")])
