"""SCAN's splits of maximum compound divergence (Keysers et al. 2020, arXiv:1912.09713): mcd1, mcd2 and mcd3.

Training and test rows contain the same words equally often, but combine these words as differently as possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from petransfer.data.benchmark_files import PublishedFile, find_or_download, read_rows
from petransfer.data.task import Example, SplitData, cut_dev
from petransfer.data.task_registry import RegisteredTask
from petransfer.data.tasks.scan import PublishedPart, ScanRow, connective, rows_sha256
from petransfer.data.tasks.scan import parse_row as parse_scan_row
from petransfer.errors import UserError, unknown

SPLITS: tuple[str, ...] = ("mcd1", "mcd2", "mcd3")
DEV: tuple[str, ...] = ("cut", "published")

# computed from the rows of SCAN that are listed in the index files of the release of CFQ and SCAN-MCD
PUBLISHED: dict[tuple[str, str], PublishedPart] = {
    ("mcd1", "train"): PublishedPart(8_365, "f579c2758dd00a6a0d321848407796afafd57f270b772eebfa05041057e29721"),
    ("mcd1", "dev"): PublishedPart(1_046, "f9b8d0ddd9c5aacdaba72f5c00b5d9730e37f7eb591ac99fd512d2e32bd91959"),
    ("mcd1", "test"): PublishedPart(1_045, "0c8ba1e5d89582005dd844026bd0f4ec553972c5bed102746eb53d6671b7b685"),
    ("mcd2", "train"): PublishedPart(8_365, "f31df64e4bb6225c2fe32cacfffb00507613b051fbb0e066f44584480741732c"),
    ("mcd2", "dev"): PublishedPart(1_046, "1630b4d57ce3806b3fd67b367a1e789ca37d758bdfbf5407c586f5ca43053ef5"),
    ("mcd2", "test"): PublishedPart(1_045, "f91bf0e8135a78fe60bc9f77a6230a6b5e05ba66373ed8a53cf7e87b27f11ab0"),
    ("mcd3", "train"): PublishedPart(8_365, "001053a095c65c202b4be8595c7070a40ae411cc25fb2e3ce3819cc7d0acbe85"),
    ("mcd3", "dev"): PublishedPart(1_046, "7b72e7ec837f841d1d9674babcd9babbc2fbd2cd519d428b0fe039072b516d93"),
    ("mcd3", "test"): PublishedPart(1_045, "044b9f1a2b465d6df9cdca1410455d8b1d532ad2643e2493c177eaa458dfa3c0"),
}

# a public repository with the rows that the index files list, as text: `<command>  <actions>`
_REPOSITORY = "ayushchakravarthy/language_compositionality"
_COMMIT = "44b6001d8d526caf0a60b7d40dd46e1e5c17b713"
FILES: dict[tuple[str, str], PublishedFile] = {
    (split, part): PublishedFile(
        _REPOSITORY, _COMMIT, f"data/scan/{split}/{part}.txt", f"scan_mcd/{split}/{part}.txt", sha256
    )
    for (split, part), sha256 in {
        ("mcd1", "train"): "a7f5f57e7555966f917cb23a7cf00988ba43b26a7663dc46d76a26c2bd353ac1",
        ("mcd1", "dev"): "d8f145cdd83bab390b7f853246cabdee3f6e99e166cc34a7f13d4ee03c7b38f4",
        ("mcd1", "test"): "b39dda1256f8b3ba879e44ae3b48da9631d9b87ca327e33778212c3f2c9f8d89",
        ("mcd2", "train"): "e0eda78f21f71ddc6da7fd7c065a4135ccd90651b3e3ff2dab2af4e5a726f07c",
        ("mcd2", "dev"): "15d8a47c6a456c98f492bd2136bfbb31b266f1abd23a2c1b72dea8eb85957ddd",
        ("mcd2", "test"): "b7c5db73f447221f18d23e4af2320a7a67e43cb38943418430ec1e3837d5c3a3",
        ("mcd3", "train"): "427ae01bb373f0aba7d8b9fa435dbcf8e28a83fff0e0e5499f9270a616f76f38",
        ("mcd3", "dev"): "a4390509ad4350637b71c63896b05a5e4f278e69f7704386f7efbba7949a89a2",
        ("mcd3", "test"): "e1fd118d2709898e47bba4284baa72e287802e025b5ce37583c8f74c30787ea4",
    }.items()
}


def parse_row(line: str) -> ScanRow:
    """Split a line `IN: <command> OUT: <actions>` or `<command>  <actions>` into (command, actions)."""
    if line.startswith("IN: "):
        return parse_scan_row(line)
    command, blanks, actions = line.partition("  ")
    if not (command.strip() and blanks and actions.strip()):
        raise ValueError("expected `IN: <command> OUT: <actions>`, or command and actions with two blanks between")
    return command, actions


@dataclass(frozen=True)
class ScanMcdTask:
    """SCAN-MCD: 8,365 training rows and 1,045 test rows per split.

    The category of an example is the connective of its command: `and`, `after`, or `simple` for neither of the two.

    Args:
        data_dir: Folder with `scan_mcd/<split>/train.txt`, `dev.txt` and `test.txt`, or folder with the `<split>`
            folders. Files can be compressed as `.xz`. Missing files are read from the cache or downloaded.
        dev: "cut" turns `dev_size` training rows into dev rows. "published" uses the 1,046 published dev rows. They
            have the distribution of the test rows: choosing settings on them is like choosing settings on test rows.
        dev_size: Number of training rows that become dev rows with "cut".
    """

    data_dir: Path | None = None
    dev: str = "cut"
    dev_size: int = 500
    name = "scan-mcd"
    splits = SPLITS

    def __post_init__(self) -> None:
        if self.dev not in DEV:
            raise unknown("dev of scan-mcd", str(self.dev), DEV)
        if not isinstance(self.dev_size, int) or not 1 <= self.dev_size <= 4_000:
            raise UserError(f"dev_size of scan-mcd is {self.dev_size!r}: give a whole number from 1 to 4,000")

    def train_size(self, split: str) -> int:
        """Return the number of training rows, without the dev rows."""
        _refuse_unknown(split)
        return PUBLISHED[split, "train"].rows - (self.dev_size if self.dev == "cut" else 0)

    def longest(self, split: str) -> tuple[int, int]:
        """Return the lengths in characters of the longest command and the longest actions of any training file."""
        return 59, 479

    def load(self, split: str) -> SplitData:
        """Return the examples of one split, sorted by command."""
        _refuse_unknown(split)
        train, test = self._examples(split, "train"), self._examples(split, "test")
        if self.dev == "published":
            return SplitData(train=train, dev=self._examples(split, "dev"), test=test)
        train, dev = cut_dev(train, self.dev_size, salt=f"scan-mcd/{split}")
        return SplitData(train=train, dev=dev, test=test)

    def _examples(self, split: str, part: str) -> tuple[Example, ...]:
        layout = f"{split}/{part}.txt"
        folders = ("scan_mcd/", "extra/scan_mcd/", "data/scan/", "")
        path = find_or_download(FILES[split, part], self.data_dir, [f"{folder}{layout}" for folder in folders])
        rows = sorted(read_rows(path, parse_row))
        expected = PUBLISHED[split, part]
        if rows_sha256(rows) != expected.sha256:
            raise UserError(
                f"{path} does not hold the published {part} rows of scan-mcd/{split} ({len(rows):,} rows, expected "
                f"{expected.rows:,}): replace it, or delete it to have it downloaded"
            )
        return tuple(Example(index, *row, category=connective(row[0])) for index, row in enumerate(rows))


def _refuse_unknown(split: str) -> None:
    if split not in SPLITS:
        raise unknown("split of scan-mcd", split, SPLITS)


TASK = RegisteredTask(
    "scan-mcd",
    ScanMcdTask,
    title="SCAN-MCD",
    licence="cc-by-4.0",  # the licence of the splits, which is stricter than that of the rows
    languages=("en",),
    hub_datasets=("scan",),
    citation="Keysers et al. (2020), Measuring Compositional Generalization, arXiv:1912.09713",
)
