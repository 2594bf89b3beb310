"""Find the files of a folder of tables, divided into splits as by the library `datasets`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from petransfer.data.rows.source import SUPPORTED, Source, parallel_advice, table_format
from petransfer.data.rows.text_lines import open_text
from petransfer.errors import UserError
from petransfer.plurals import count

ONE_BY_ONE = "name its files one by one: the file of training rows, and others with --dev and --test"
SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")
# The formats that are read here, by the name of the module that reads them in `datasets`.
_FORMATS = {"csv": ("csv", "tsv"), "json": ("jsonl",), "parquet": ("parquet",), "arrow": ("arrow",)}
# A larger file is not empty, even if it is compressed.
_MOST_BYTES_OF_EMPTY = 300
_COLUMNS_SHOWN, _FILES_SHOWN = 10, 5


def files_of(source: Source) -> list[Source]:
    """Return the files of a folder's split. For a file, or a dataset that `datasets` reads: only `source`.

    Raises:
        UserError: The folder has no such split, or all files of the split are empty.
    """
    splits = folder_files(source)
    if splits is None:
        return [source]
    refuse_unknown_split(source, list(splits))
    found = [file for file in splits[source.split] if _has_rows(file)]
    if not found:
        raise UserError(f"{source.name} has no rows: all its files are empty; name a folder with rows")
    return found


def folder_files(source: Source) -> dict[str, list[Source]] | None:
    """Return the files of a folder of tables, by split. None for files, and for datasets that `datasets` must read.

    As in `datasets`, the file names determine the splits. Each file is then read as if the user had named it alone,
    because `datasets` would read the csv texts 007 and True as a number and a boolean, dates in JSON as times, and some
    files twice.
    """
    if source.format != "dataset" or source.path is None or source.config or _has_own_rules(source.path):
        return None
    try:
        files, module = _files_and_module(source.path)
    except (OSError, ValueError):  # `datasets` reports this error
        return None
    if module not in _FORMATS:
        return None
    found = {}
    for split, names in files.items():
        paths = [Path(name) for name in dict.fromkeys(names) if table_format(Path(name)) in _FORMATS[module]]
        found[str(split)] = [_file(source, path) for path in paths]
    return found


def unread_note(source: Source) -> list[str]:
    """Return a warning about the tables of a folder that are in no split. Empty without such files."""
    splits = folder_files(source)
    if splits is None or source.path is None:
        return []
    from datasets.data_files import FILES_TO_IGNORE

    read = {file.path for files in splits.values() for file in files}
    folder = source.path.resolve()
    others = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path not in read and path.is_file() and table_format(path) and path.name not in FILES_TO_IGNORE
    ]
    others = [name for name in others if not re.search(r"(^|/)(\.|__)", name)]
    if not others:
        return []
    shown = ", ".join(others[:_FILES_SHOWN]) + (", ..." if len(others) > _FILES_SHOWN else "")
    return [
        f"warning: {source.name}: {count(len(others), 'file')} not read ({shown}): only files of the folder's most "
        "frequent format are read; if a file name has the word train, dev or test, only files with such names are "
        "read, such as train-2.csv"
    ]


def refuse_mixed_files(source: Source) -> None:
    """Raise UserError for a folder with tables whose other files make `datasets` read it as lines of text."""
    if source.path is None or source.config or _has_own_rules(source.path):
        return
    try:
        module = _files_and_module(source.path)[1]
    except (OSError, ValueError):  # `datasets` reports this error
        return
    if module == "text" and _tables(source.path):
        raise UserError(f"{source.name} contains tables and other files; {what_to_name(source)}")


def what_to_name(source: Source) -> str:
    """Return what the user can name in place of a folder or hub id that cannot be loaded."""
    if source.path is None:
        return "name a file, a folder or a hub id"
    tables = _tables(source.path)
    if tables:
        return f"name the file with your rows, such as {_file(source, tables[0]).name}"
    return f"{parallel_advice(source.path)}name a file with rows; supported are {SUPPORTED}"


def refuse_unknown_split(source: Source, splits: Sequence[str]) -> None:
    """Raise UserError if the source's split is not one of `splits`."""
    if source.split not in splits:
        raise UserError(f"{source.name} has no split '{source.split}' (it has: {', '.join(splits)})")


def refuse_unlike_columns(source: Source, files: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError if two files of a folder have different columns. `files`: the columns by file name."""
    first, *others = files
    for name in others:
        if set(files[name]) != set(files[first]):
            shown = "; ".join(
                f"{one} has {', '.join(files[one][:_COLUMNS_SHOWN]) or 'no column names'}" for one in (first, name)
            )
            raise UserError(
                f"the files of {source.name} have different columns ({shown}); write the same column names into every "
                f"file, also as the first line of each csv file, or {ONE_BY_ONE}"
            )


def _has_own_rules(folder: Path) -> bool:
    """Return whether `datasets` saved a folder, or whether its README.md says which files belong to which split."""
    if any((folder / file).is_file() for file in SAVED_BY_DATASETS):
        return True
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return re.search(r"^configs\s*:", head, re.MULTILINE) is not None


def _tables(folder: Path) -> list[Path]:
    """Return the tables in a folder, by their names."""
    return [path for path in sorted(folder.resolve().rglob("*")) if table_format(path) and path.is_file()]


def _files_and_module(folder: Path) -> tuple[dict[str, list[str]], str]:
    """Return the files that `datasets` finds in a folder, by split, and the module that reads most of them."""
    from datasets.load import infer_module_for_data_files  # imported here because it takes time

    files = _files(folder)
    return files, str(infer_module_for_data_files(files)[0])


def _files(folder: Path) -> dict[str, list[str]]:
    """Return the files that `datasets` finds in a folder, by split."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    place = str(folder.resolve())
    return dict(DataFilesDict.from_patterns(get_data_patterns(place), base_path=place))


def _file(source: Source, path: Path) -> Source:
    assert source.path is not None
    name = f"{source.name}/{path.relative_to(source.path.resolve()).as_posix()}"
    return replace(source, name=name, format=table_format(path), path=path, split="")


def _has_rows(file: Source) -> bool:
    import pyarrow.parquet

    assert file.path is not None
    if file.format == "parquet":
        try:
            return bool(pyarrow.parquet.read_metadata(file.path).num_rows)
        except (pyarrow.ArrowException, OSError):  # `read_parquet` reports this error
            return True
    if file.path.stat().st_size > _MOST_BYTES_OF_EMPTY:
        return True
    with open_text(file) as text:
        return bool(text.read().strip())
