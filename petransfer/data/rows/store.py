"""From the user's files to checked rows on the disk, once for each state of the files; all that is wrong shows here."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import secrets
import shutil
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.data.benchmark_files import cache_dir
from petransfer.data.rows.reading import Record, Source, open_dataset, read, source_of
from petransfer.data.rows.stored_rows import Rows, RowWriter
from petransfer.data.task import SplitData, row_name
from petransfer.errors import UserError

if TYPE_CHECKING:
    from petransfer.data.tasks.lines import LinesTask

PARTS = ("train", "dev", "test")
_OTHER = len(PARTS)
_SAID = {"train": 0, "training": 0, "dev": 1, "valid": 1, "validation": 1, "test": 2}
# Targets are a closed set if there are at most so many, each seen so often in the training rows on average.
LABELS, ROWS_A_LABEL = 50, 5
# More are not counted, nor may so many categories be told apart.
COUNTED, CATEGORIES = 5000, 1000
LISTED = 20
_LAYOUT = 2  # raised when the files of a store change, or what is read into them


@dataclass(frozen=True)
class Store:
    """A folder with the rows, the positions of each part's, and what is known of them."""

    folder: Path
    about: dict[str, Any]

    def load(self) -> SplitData:
        """The three parts."""
        import numpy as np

        rows = self.folder / "rows.arrow"
        train, dev, test = (Rows(rows, np.load(self.folder / f"{part}.npy")) for part in PARTS)
        return SplitData(train, dev, test, tuple(self.about["labels"]))


def prepared(task: LinesTask) -> Store:
    """The store of a task's data, made now or taken from the cache while the files are as they were.

    Raises:
        UserError: a file is missing, a row is broken, a part is empty, or a file changed while it was read.
    """
    sources, cuts = _sources(task)
    states = {part: source.state() for part, source in sources.items()}
    return _store(task, tuple(sources.items()), tuple(cuts.items()), tuple(states.items()))


def line_of(task: LinesTask, part: str, index: int) -> str:
    """Where the row of that index stands in the file or dataset that a part's rows were read from."""
    sources, _ = _sources(task)
    source = sources.get(part, sources["train"])
    found = next(itertools.islice(_records(task, source), index, None), None)
    return f"{source.name}:{found.line}" if found else row_name(part, index)


@functools.lru_cache(maxsize=4)
def _store(task: LinesTask, sources: Any, cuts: Any, states: Any) -> Store:
    options = {key: value for key, value in task.place().items() if key != "max_length"}
    places = [(part, str(source.path.resolve() if source.path else source.name)) for part, source in sources]
    asked = _short([_LAYOUT, places, options, task.template])
    folder = cache_dir() / "lines" / f"{asked}-{_short(states)}"
    kept = _about(folder)
    # a hub's state is not known beforehand: what is kept will do where it is what the recipe pins
    unsure = any(source.path is None for _, source in sources) and (not kept or kept["sha256"] != task.sha256)
    if kept is None or unsure:
        _make(task, dict(sources), dict(cuts), dict(states), folder, asked)
        kept = _about(folder)
    if kept is None:
        raise UserError(f"the rows in {folder} went away while they were read; start again")
    return Store(folder, kept)


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def _sources(task: LinesTask) -> tuple[dict[str, Source], dict[str, float]]:
    """Which parts have rows of their own, and which are cut from the training rows, and how large."""
    train = source_of(task.train, task.data_dir, task.format, "train", task.config)
    sources, cuts = {"train": train}, {}
    splits = list(open_dataset(train)) if train.format == "dataset" else []
    for part in ("test", "dev"):
        asked = getattr(task, part)
        names = ("validation", "valid", "dev") if part == "dev" else ("test",)
        own = asked if asked in splits else next((name for name in names if name in splits), "") if asked == "" else ""
        if task.split_column and asked != "":
            raise UserError(f"lines has both split_column and {part}; leave one of them out")
        if isinstance(asked, float | int):
            cuts[part] = asked
        elif own:
            sources[part] = source_of(task.train, task.data_dir, "dataset", own, task.config)
        elif asked:
            sources[part] = source_of(asked, task.data_dir, task.format, "train", task.config)
        elif not task.split_column:
            cuts[part] = 0
    return sources, cuts


def _make(
    task: LinesTask,
    sources: dict[str, Source],
    cuts: dict[str, float],
    states: dict[str, Any],
    folder: Path,
    asked: str,
) -> None:
    """Writes a store under a name of its own and renames it; stores of the same files' former states go."""
    partial = folder.with_name(f".{asked}.{secrets.token_hex(8)}.part")
    try:
        partial.mkdir(parents=True)
        about = _Builder(task, partial).build(sources, cuts)
        for part, source in sources.items():
            if source.state() != states[part]:
                raise UserError(f"{source.name} changed while it was read; wait until it is written, then start again")
        (partial / "about.json").write_text(json.dumps(about), encoding="utf-8")
        for old in folder.parent.glob(f"{asked}-*"):
            shutil.rmtree(old, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        if (folder / "about.json").is_file():  # another process was quicker
            return
        raise UserError(
            f"the rows of {task.train} cannot be kept in {folder.parent} ({error.strerror}); set PETRANSFER_CACHE"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass
class _Builder:
    """One pass over the sources. hashes: of the inputs, 8 bytes each, by which rows are drawn and overlaps found."""

    task: LinesTask
    folder: Path
    parts: array[int] = field(default_factory=lambda: array("B"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    digest: Any = field(default_factory=hashlib.sha256)
    targets: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    listed: list[str] = field(default_factory=list)
    longest: list[int] = field(default_factory=lambda: [0, 0])
    first: tuple[str, str] | None = None

    def build(self, sources: dict[str, Source], cuts: dict[str, float]) -> dict[str, Any]:
        with RowWriter(self.folder / "rows.arrow") as writer, (self.folder / "bad-rows.txt").open("w") as bad:
            for part in PARTS:
                if part in sources:
                    self._read(part, sources[part], writer, bad)
        from petransfer.data.rows.held_out import overlaps, partition

        codes = partition(self.parts, self.hashes, cuts, self.task.seed)
        sizes = self._keep(codes)
        self._check(sizes, sources)
        few = len(self.targets) <= LABELS and sizes["train"] >= ROWS_A_LABEL * len(self.targets)
        return {
            "sha256": self.digest.hexdigest(),
            "sizes": sizes,
            "longest": self.longest,
            "labels": sorted(self.targets) if len(self.targets) <= COUNTED else [],
            "targets": len(self.targets),
            "closed": few and len(self.targets) > 1,
            "bad": self.bad,
            "notes": [*self._notes(sources), *overlaps(codes, self.hashes)],
        }

    def _read(self, part: str, source: Source, writer: RowWriter, bad: Any) -> None:
        for index, record in enumerate(_records(self.task, source)):
            try:
                if record.problem:
                    raise ValueError(record.problem)
                code, row = self._row(part, record)
                hashed = _hash(row, self.task.seed)
            except ValueError as error:
                said = f"{source.name}:{record.line}: {error}"
                if self.task.bad_rows == "refuse":
                    raise UserError(f"{said}; --skip-bad-rows leaves such rows out") from None
                self.bad += 1
                bad.write(said + "\n")
                self.listed += [said] if len(self.listed) < LISTED else []
                continue
            if code == _OTHER:
                continue
            writer.add(index, *row)
            self._note(code, hashed, row)

    def _row(self, part: str, record: Record) -> tuple[int, tuple[str, str, str]]:
        from petransfer.data.tasks.lines import fields_of, render

        task, values = self.task, record.values
        texts = {name: _text(values[name], name) for name in fields_of(task.template, task.input)}
        source = render(task.template, texts) if task.template else texts[task.input]
        target = _text(values[task.target], "target")
        category = _text(values[task.category], "category") if task.category in values else "all"
        for name, text in (("input", source), ("target", target), ("category", category)):
            if not text.strip():
                raise ValueError(f"the {name} is empty")
        code = PARTS.index(part)
        if task.split_column:
            code = _SAID.get(_text(values[task.split_column], task.split_column).strip().lower(), _OTHER)
        return code, (source, target, category)

    def _note(self, code: int, hashed: int, row: tuple[str, str, str]) -> None:
        source, target, category = row
        self.parts.append(code)
        self.hashes.append(hashed)
        self.digest.update(json.dumps(row).encode())
        if len(self.targets) <= COUNTED:
            self.targets[target] += 1
        if len(self.categories) <= CATEGORIES:
            self.categories[category] += 1
        self.longest = [max(self.longest[0], len(source)), max(self.longest[1], len(target))]
        self.first = self.first or (source, target)

    def _keep(self, codes: Any) -> dict[str, int]:
        import numpy as np

        sizes = {}
        for code, part in enumerate(PARTS):
            positions = np.flatnonzero(codes == code).astype(np.uint32)
            self.digest.update(positions.tobytes())
            np.save(self.folder / f"{part}.npy", positions)
            sizes[part] = len(positions)
        return sizes

    def _check(self, sizes: dict[str, int], sources: dict[str, Source]) -> None:
        for part, size in sizes.items():
            if not size:
                name = sources.get(part, sources["train"]).name
                short = sum(sizes.values())
                left_out = f"; {self.bad} bad rows were left out, the first: {self.listed[0]}" if self.bad else ""
                raise UserError(
                    f"{name} leaves no {part} rows (of {short} in all); give more rows, or name files{left_out}"
                )
        if len(self.categories) > CATEGORIES:
            raise UserError(
                f"the column '{self.task.category}' has more than {CATEGORIES:,} categories; name another with category"
            )
        alike: dict[str, list[str]] = {}
        for name in self.categories:
            alike.setdefault(" ".join(name.split()).casefold(), []).append(name)
        for names in alike.values():
            if len(names) > 1:
                said = " and ".join(f"{name!r} ({self.categories[name]} rows)" for name in sorted(names))
                raise UserError(f"the categories {said} differ in case or blanks alone; write them alike")

    def _notes(self, sources: dict[str, Source]) -> Iterator[str]:
        if self.first:
            yield f"the first row is {_shown(self.first[0])} -> {_shown(self.first[1])}"
        if self.bad:
            more = f", and {self.bad - LISTED} more" if self.bad > LISTED else ""
            yield f"{self.bad} bad rows left out: {'; '.join(self.listed)}{more}"


def _records(task: LinesTask, source: Source) -> Iterator[Record]:
    """The source's rows, with a line on stderr now and then where there are many."""
    from petransfer.data.tasks.lines import fields_of

    required = dict.fromkeys(fields_of(task.template, task.input), "template" if task.template else "input")
    required[task.target] = "target"
    required |= {task.category: "category"} if task.category != "category" else {}
    if task.split_column:
        required.setdefault(task.split_column, "split_column")
    named = list(required) != ["input", "target"]
    for count, record in enumerate(read(source, required, named), start=1):
        if count % 1_000_000 == 0:
            print(f"{source.name}: {count:,} rows read", file=sys.stderr)
        yield record


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    raise ValueError(f"the {name} is {'empty' if value is None else f'a {type(value).__name__}, not text'}")


def _hash(row: tuple[str, str, str], seed: int) -> int:
    """8 bytes of the input's, under a key that follows from the seed."""
    try:
        source, *_ = [text.encode() for text in row]
    except UnicodeEncodeError:
        raise ValueError("a character that is half of a pair (a lone surrogate); write the text again") from None
    return int.from_bytes(hashlib.blake2b(source, digest_size=8, key=str(seed).encode()).digest(), "big")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
