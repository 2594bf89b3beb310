"""Load a folder of files with the library `datasets`: skip files without rows, and name files with unlike columns."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petransfer.data.rows.source import Source
from petransfer.data.rows.text_lines import open_text
from petransfer.errors import UserError

ONE_BY_ONE = "name its files one by one: the file of training rows, and others with --dev and --test"
# A larger file is not empty, even if it is compressed.
_MOST_BYTES_OF_EMPTY = 300
_FILES_COMPARED, _COLUMNS_SHOWN = 100, 10


def load_folder(source: Source) -> Any:
    """Return the dataset of a folder. Files without rows, as Spark and Hive write them, are left out.

    Raises:
        UserError: No file has rows, or two files have unlike columns.
    """
    import datasets

    # these loggers repeat the error of a file, and the caller reports it
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    place, config = str(source.path), source.config or None
    try:
        return datasets.load_dataset(place, config)
    except datasets.exceptions.DatasetGenerationError:
        assert source.path is not None
        files = _files(source.path)
        full = {split: [file for file in names if _has_rows(Path(file))] for split, names in files.items()}
        if not any(full.values()):
            raise UserError(f"{source.name} has no rows: all its files are empty; name a folder with rows") from None
        _refuse_unlike_columns(source, full)
        if full == files or config:
            raise
        return datasets.load_dataset(place, data_files={split: names for split, names in full.items() if names})


def _files(folder: Path) -> dict[str, list[str]]:
    """Return the files that `datasets` loads from a folder, by split."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    return {str(split): list(map(str, files)) for split, files in found.items()}


def _has_rows(file: Path) -> bool:
    import pyarrow.parquet

    if file.suffix.lower() == ".parquet":
        return bool(pyarrow.parquet.read_metadata(file).num_rows)
    if file.stat().st_size > _MOST_BYTES_OF_EMPTY:
        return True
    with open_text(Source(str(file), "csv", file)) as text:
        return bool(text.read().strip())


def _refuse_unlike_columns(source: Source, files: dict[str, list[str]]) -> None:
    """Raise UserError if a file has other columns than the first file."""
    assert source.path is not None
    first = None
    for name, columns in _columns_by_file(source.path, [file for names in files.values() for file in names]):
        if first is None:
            first = name, columns
        elif set(columns) != set(first[1]):
            shown = "; ".join(
                f"{one} has {', '.join(names[:_COLUMNS_SHOWN])}" for one, names in (first, (name, columns))
            )
            raise UserError(
                f"the files of {source.name} have unlike columns ({shown}); write the same column names into every "
                f"file, also as the first line of each csv file, or {ONE_BY_ONE}"
            )


def _columns_by_file(folder: Path, files: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the columns of each file, by its first row."""
    import datasets

    for file in files[:_FILES_COMPARED]:
        rows = datasets.load_dataset(str(folder), data_files=[file], split="train", streaming=True)
        yield Path(file).relative_to(folder.resolve()).as_posix(), list(next(iter(rows), {}))
