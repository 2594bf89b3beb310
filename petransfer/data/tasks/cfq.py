"""CFQ's splits of maximum compound divergence (Keysers et al. 2020, arXiv:1912.09713): questions to SPARQL queries.

The files are never downloaded. They come from the official release (`dataset.json` with all questions, 4 GB, and a file
with row numbers for each split) or from the smaller copy on the Hugging Face hub, which has no dev rows. The two
sources give the same examples, because rows are sorted by question and query.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from petransfer.data.benchmark_files import find_file
from petransfer.data.rows.json_rows import read_json
from petransfer.data.rows.records import Record
from petransfer.data.rows.source import Source
from petransfer.data.rows.tables import read_parquet
from petransfer.data.rows.text_lines import open_text
from petransfer.data.task import PARTS, Example, SplitData, cut_dev
from petransfer.data.task_registry import RegisteredTask
from petransfer.errors import UserError, unknown

SPLITS: tuple[str, ...] = ("mcd1", "mcd2", "mcd3")
ROWS = {"train": 95_743, "dev": 11_968, "test": 11_968}
Pair = tuple[str, str]
"""A question and its query."""

DEV: tuple[str, ...] = ("cut", "published")
BRACES: tuple[str, ...] = ("keep", "square")
_QUESTION, _QUERY = "questionPatternModEntities", "sparqlPatternModEntities"
_SQUARE = str.maketrans("{}", "[]")
_WHERE_FROM = "unpack cfq1.1.tar.gz of github.com/google-research/google-research (folder cfq) and name its folder with"


@dataclass(frozen=True)
class CfqTask:
    """CFQ-MCD: 95,743 training, 11,968 dev and 11,968 test rows per split. Categories are `yes-no` and `list`.

    Args:
        data_dir: Folder with `cfq/dataset.json` and `cfq/splits/mcd1.json`, plain or `.xz`; or folder with
            `cfq/mcd1/train-00000-of-00001.parquet` and `test-00000-of-00001.parquet`. `cfq/` can be left out.
        dev: `cut` turns `dev_size` training rows into dev rows. `published` uses the published dev rows. They have the
            distribution of the test rows: choosing settings on them is almost like choosing settings on test rows.
        dev_size: Number of training rows that become dev rows with `cut`.
        braces: `keep` leaves braces in queries. `square` replaces braces by `[` and `]`, because tokenizers such as
            T5's have no braces.
    """

    data_dir: Path | None = None
    dev: str = "cut"
    dev_size: int = 500
    braces: str = "keep"
    name = "cfq"
    splits = SPLITS

    def __post_init__(self) -> None:
        for key, choices in (("dev", DEV), ("braces", BRACES)):
            if getattr(self, key) not in choices:
                raise unknown(f"{key} of cfq", str(getattr(self, key)), choices)
        if not isinstance(self.dev_size, int) or not 1 <= self.dev_size <= 20_000:
            raise UserError(f"dev_size of cfq is {self.dev_size!r}: give a whole number from 1 to 20,000")

    def train_size(self, split: str) -> int:
        """Return the number of training rows, without the dev rows."""
        return ROWS["train"] - (self.dev_size if self.dev == "cut" else 0)

    def longest(self, split: str) -> tuple[int, int]:
        """Return the lengths in characters of the longest training question and query. This reads the files."""
        train = self.load(split).train
        return max(len(row.input) for row in train), max(len(row.target) for row in train)

    def load(self, split: str) -> SplitData:
        """Return the examples of one split, sorted by question and query."""
        if split not in SPLITS:
            raise unknown("split of cfq", split, SPLITS)
        tables = [self._find(f"{split}/{part}-00000-of-00001.parquet") for part in ("train", "test")]
        if all(tables) and self.dev == "cut":
            rows = {part: _read_table(path) for part, path in zip(("train", "test"), tables, strict=True) if path}
        else:
            rows = _read_release(self._file("dataset.json"), self._file(f"splits/{split}.json"))
        for part, pairs in rows.items():
            if len(pairs) != ROWS[part]:
                raise UserError(f"cfq/{split} has {len(pairs):,} {part} rows, expected {ROWS[part]:,}: get it again")
        parts = {part: self._examples(pairs) for part, pairs in rows.items()}
        if self.dev == "published":
            return SplitData(parts["train"], parts["dev"], parts["test"])
        train, dev = cut_dev(parts["train"], self.dev_size, salt=f"cfq/{split}")
        return SplitData(train, dev, parts["test"])

    def _examples(self, pairs: list[Pair]) -> tuple[Example, ...]:
        table = _SQUARE if self.braces == "square" else {}
        rows = enumerate(sorted(pairs))
        return tuple(Example(at, question, query.translate(table), _kind(query)) for at, (question, query) in rows)

    def _find(self, name: str) -> Path | None:
        return find_file(self.data_dir, [f"{folder}{name}" for folder in ("cfq/", "")]) if self.data_dir else None

    def _file(self, name: str) -> Path:
        found = self._find(name)
        if found is None:
            raise UserError(f"cfq/{name} is missing: {_WHERE_FROM} --data-dir DIR")
        return found


@functools.lru_cache(maxsize=2)
def _read_release(dataset: Path, numbers: Path) -> dict[str, list[Pair]]:
    """Return (question, query) of all rows of a split, by part."""
    try:
        with open_text(Source(numbers.name, "jsonl", numbers)) as file:
            content = json.load(file)
        wanted = {part: [int(row) for row in content[f"{part}Idxs"]] for part in PARTS}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{numbers} is not a split of CFQ ({' '.join(str(error).split())}); get it again") from None
    needed = {row for rows in wanted.values() for row in rows}
    pairs: dict[int, Pair] = {}
    for row, record in enumerate(read_json(Source(dataset.name, "jsonl", dataset))):
        if row in needed:
            pairs[row] = _pair(record, _QUESTION, _QUERY, dataset)
    missing = sorted(needed - pairs.keys())
    if missing:
        raise UserError(f"{dataset} has no row {missing[0]:,}, which {numbers} names; get both files of one release")
    return {part: [pairs[row] for row in rows] for part, rows in wanted.items()}


def _read_table(path: Path) -> list[Pair]:
    source = Source(path.name, "parquet", path)
    return [_pair(record, "question", "query", path) for record in read_parquet(source, ("question", "query"))]


def _pair(record: Record, question: str, query: str, path: Path) -> Pair:
    """Return the question and the query of a row. Line breaks in the query become blanks."""
    try:
        return record.values[question], " ".join(str(record.values[query]).split())
    except KeyError as error:
        raise UserError(f"{path}: row {record.line:,} has no {error}; get the official file") from None


def _kind(query: str) -> str:
    """Return the category of a query: `yes-no` if it counts, `list` if it selects entities."""
    return "yes-no" if query.lower().startswith("select count") else "list"


TASK = RegisteredTask(
    "cfq",
    CfqTask,
    title="CFQ-MCD",
    licence="cc-by-4.0",
    languages=("en",),
    hub_datasets=("google-research-datasets/cfq",),
    citation="Keysers et al. (2020), Measuring Compositional Generalization, arXiv:1912.09713",
    category_titles={"yes-no": "Yes-no questions", "list": "Questions for entities"},
    category_groups={"yes-no": "question", "list": "question"},
)
