"""Reads the user's own rows as a stream: tsv, csv, jsonl, parquet, or what the library `datasets` loads."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import os
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from petransfer.errors import UserError

FORMATS = ("tsv", "csv", "jsonl", "parquet", "dataset")
_SUFFIXES = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_PACKED: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
POSITIONAL = ("input", "target", "category")
_BATCH = 1000
# So many lines of one csv row are kept, to be read again where its quote turns out to be the mistake.
_LINES_A_ROW = 10_000


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands: the line where it begins, counted from 1, and its values; or what is wrong with it."""

    line: int
    values: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """Where rows come from. path: a file or folder, None for a hub id. split, config: of a dataset."""

    name: str
    format: str
    path: Path | None
    split: str = ""
    config: str = ""

    def state(self) -> tuple[int, ...]:
        """What changes when the file changes.

        Raises:
            UserError: it cannot be looked at.
        """
        if self.path is None:
            return ()
        try:
            found = [path.stat() for path in (self.path, *sorted(self.path.rglob("*")))]
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); correct the name of the data") from None
        return tuple(number for each in found for number in (each.st_ino, each.st_size, each.st_mtime_ns))


def source_of(name: str, folder: Path | None, form: str = "", split: str = "", config: str = "") -> Source:
    """What a name in a recipe stands for: a file in `folder` or here, a folder, or a dataset's hub id.

    Raises:
        UserError: there is no such file, or its format is not known.
    """
    places = [folder / name, Path(name).expanduser()] if folder else [Path(name).expanduser()]
    path = next((place for place in places if place.exists()), None)
    if path is not None and path.is_file():
        return Source(name, form or _format(path), path)
    if path is not None:
        return Source(name, "dataset", path, split, config)
    if form not in ("", "dataset") or name.startswith((".", "/", "~")) or _suffix(Path(name)) in _SUFFIXES:
        raise UserError(f"no file {name}; name a tsv, csv, jsonl or parquet file, or a dataset that `datasets` loads")
    return Source(name, "dataset", None, split, config)


# The columns that must be there, each with the option that names it.
Columns = Mapping[str, str]


def read(source: Source, required: Columns, named: bool) -> Iterator[Record]:
    """The rows in their order. Blank lines are passed over.

    named: they are the user's own names, so that a file without them is a
    mistake; otherwise a tsv without a header is read by position.

    Raises:
        UserError: a column is missing, or the file is no file of its format.
    """
    return _READERS[source.format](source, required, named)


def _tsv(source: Source, required: Columns, named: bool) -> Iterator[Record]:
    rows = ((line, None if problem else text.split("\t"), problem) for line, text, problem in _lines(source))
    return _cells(source, rows, required, named, positional=True)


def _csv(source: Source, required: Columns, named: bool) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    return _cells(source, _csv_rows(source), required, named, positional=False)


Row = tuple[int, list[str] | None, str]


def _csv_rows(source: Source) -> Iterator[Row]:
    """A quoted field may hold line breaks, so that lines are joined by the csv module.

    After a row that it cannot read, reading goes on with the line after the row's first: a quote that is not closed
    takes all that follows into its row.
    """
    rest, again = _lines(source), deque[_Line]()
    taken: list[_Line] = []
    broken: list[_Line] = []

    def texts() -> Iterator[str]:
        while line := again.popleft() if again else next(rest, None):
            if len(taken) <= _LINES_A_ROW:
                taken.append(line)
            if line[2]:
                broken.append(line)
            yield line[1] + "\n"

    reader = csv.reader(texts(), strict=True)
    while True:
        taken.clear()
        broken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            start = taken[0][0]
            if len(taken) > _LINES_A_ROW:
                raise UserError(
                    f"{source.name}:{start}: a quote that opens in this row is not closed within {_LINES_A_ROW:,} lines"
                    "; close it, or double it where it stands for itself"
                ) from None
            yield start, None, f"not csv ({error})"
            again.extendleft(reversed(taken[1:]))
            reader = csv.reader(texts(), strict=True)
            continue
        if broken:
            yield broken[0][0], None, broken[0][2]
        elif cells:
            yield taken[0][0], cells, ""


def _cells(source: Source, rows: Iterator[Row], required: Columns, named: bool, positional: bool) -> Iterator[Record]:
    columns: list[str] | None = None
    for line, cells, problem in rows:
        if cells is None:
            yield Record(line, {}, problem)
        elif columns is None:
            by_place = positional and not named and not any(name in cells for name in required)
            if by_place and not 2 <= len(cells) <= len(POSITIONAL):
                yield Record(line, {}, f"expected {_BY_PLACE}, found {len(cells)}")
                continue
            columns = list(POSITIONAL[: len(cells)]) if by_place else _header(source, line, cells, required)
            if by_place:
                yield Record(line, dict(zip(columns, cells, strict=True)))
        elif len(cells) != len(columns):
            yield Record(line, {}, f"expected {len(columns)} columns ({', '.join(columns)}), found {len(cells)}")
        else:
            yield Record(line, dict(zip(columns, cells, strict=True)))


_BY_PLACE = f"2 or {len(POSITIONAL)} tab-separated columns ({', '.join(POSITIONAL)})"


def _header(source: Source, line: int, names: list[str], required: Columns) -> list[str]:
    """The columns' names, as the first row says them."""
    if any(name not in names for name in required):
        raise missing_column(source.name, required, names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{source.name}:{line}: the column '{twice[0]}' stands there twice; rename one of them")
    return names


def missing_column(name: str, required: Columns, found: Sequence[str]) -> UserError:
    """An error that names the columns which exist."""
    return UserError(f"{name} has {_lacking(required, found)}")


def _lacking(required: Columns, found: Sequence[str]) -> str:
    column, option = next((column, option) for column, option in required.items() if column not in found)
    exist = ", ".join(str(name)[:30] for name in list(found)[:20])
    value = "'{COLUMN}'" if option == "template" else "COLUMN"
    return (
        f"no column '{column}' (it has: {exist}); name yours in the recipe, or with --set task.options.{option}={value}"
    )


def _jsonl(source: Source, required: Columns, named: bool) -> Iterator[Record]:
    seen = False
    for line, text, problem in _lines(source):
        if problem:
            yield Record(line, {}, problem)
            continue
        try:
            values = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            yield Record(line, {}, f"not valid JSON ({' '.join(str(error).split())[:80]})")
            continue
        if not isinstance(values, dict):
            yield Record(line, {}, 'not a JSON object; write one a line, as {"input": ..., "target": ...}')
        elif any(name not in values for name in required):
            lacking = next(name for name in required if name not in values)
            known = f"no key '{lacking}' (it has: {', '.join(map(str, values))})"
            yield Record(line, {}, known if seen else _lacking(required, list(values)))
        else:
            seen = True
            yield Record(line, values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _parquet(source: Source, required: Columns, named: bool) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            names = file.schema_arrow.names
            if any(name not in names for name in required):
                raise missing_column(source.name, required, names)
            wanted = [name for name in names if name in {*required, *POSITIONAL}]
            batches = file.iter_batches(batch_size=_BATCH, columns=wanted)
            yield from _numbered(row for batch in batches for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{source.name} cannot be read as parquet ({_reason(error)}); write it again") from None


def _dataset(source: Source, required: Columns, named: bool) -> Iterator[Record]:
    data = open_dataset(source)
    if source.split not in data:
        raise UserError(f"{source.name} has no split '{source.split}' (it has: {', '.join(data)})")
    part = data[source.split]
    if any(name not in part.column_names for name in required):
        raise missing_column(source.name, required, part.column_names)
    wanted = [name for name in part.column_names if name in {*required, *POSITIONAL}]
    names = {name: feature.names for name, feature in part.features.items() if hasattr(feature, "int2str")}

    def rows() -> Iterator[dict[str, Any]]:
        for batch in part.select_columns(wanted).iter(_BATCH):
            for row in zip(*batch.values(), strict=True):
                values = dict(zip(batch, row, strict=True))
                yield {name: _label(value, names.get(name)) for name, value in values.items()}

    yield from _numbered(rows())


def _label(value: Any, names: list[str] | None) -> Any:
    """A class is kept as a number in a dataset; its name is what a model should say."""
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def open_dataset(source: Source) -> dict[str, Any]:
    """The splits of a dataset by name, its rows left on the disk.

    Raises:
        UserError: `datasets` cannot load it.
    """
    import datasets

    datasets.disable_progress_bars()
    name, _, revision = source.name.partition("@")
    try:
        if source.path is not None and any((source.path / file).is_file() for file in _SAVED):
            found = datasets.load_from_disk(str(source.path))
        else:
            place = str(source.path) if source.path else name
            found = datasets.load_dataset(place, source.config or None, revision=revision or None)
    except Exception as error:  # whatever a loader, a hub or a cache may raise
        raise UserError(
            f"`datasets` cannot load {source.name} ({_reason(error)[:160]}); name a file, a folder or a hub id"
        ) from None
    return dict(found) if isinstance(found, dict) else {"train": found}


_SAVED = ("dataset_dict.json", "state.json")
_READERS = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet, "dataset": _dataset}


def _numbered(rows: Iterator[dict[str, Any]]) -> Iterator[Record]:
    return (Record(number, row) for number, row in enumerate(rows, start=1))


_Line = tuple[int, str, str]


def _lines(source: Source) -> Iterator[_Line]:
    """The number and text of lines that are not blank, without their ends, and what is wrong where one is not UTF-8."""
    assert source.path is not None
    try:
        with _open(source.path) as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removesuffix(b"\n").removesuffix(b"\r")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line and source.format != "csv":
                    continue
                try:
                    yield number, line.decode("utf-8"), ""
                except UnicodeDecodeError as error:
                    yield (
                        number,
                        line.decode("utf-8", "replace"),
                        f"not UTF-8 at byte {error.start}; save the file as UTF-8",
                    )
    except (OSError, lzma.LZMAError, EOFError, zlib.error) as error:
        raise UserError(f"{source.path} cannot be read ({_reason(error)})") from None


def _open(path: Path) -> IO[bytes]:
    file: IO[bytes] = _PACKED[path.suffix](path, "rb") if path.suffix in _PACKED else path.open("rb")
    return file


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _PACKED else path.suffix


def _format(path: Path) -> str:
    suffix = _suffix(path)
    if suffix not in _SUFFIXES:
        known = ", ".join(sorted(_SUFFIXES))
        raise UserError(f"{os.fspath(path)}: '{suffix}' is no known format ({known}); say which: format: tsv")
    return _SUFFIXES[suffix]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
