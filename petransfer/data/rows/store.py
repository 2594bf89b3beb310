"""Store the user's rows in the cache on disk, and read them from there until the files change."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from petransfer.atomic_files import replace_folder
from petransfer.data.benchmark_files import cache_advice, cache_dir
from petransfer.data.rows.builder import RowBuilder
from petransfer.data.rows.columns import UnusableCategories
from petransfer.data.rows.folders import folder_files
from petransfer.data.rows.options import RowOptions
from petransfer.data.rows.source import Source, find_source
from petransfer.data.rows.stored_rows import StoredRows
from petransfer.data.rows.tables import split_names
from petransfer.data.task import PARTS, SplitData, row_name
from petransfer.errors import UserError

_LAYOUT = 19  # increase it when the format or the content of a store changes; older stores are then not used
# Days after which a store that was not used is removed, and a partial store that a killed process has left.
_DAYS_UNUSED, _DAYS_PARTIAL = 90, 2
# The name of a store, such as `HASH-HASH`, or of a partial store, such as `.HASH.HASH.part`.
_STORE_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}|\.[0-9a-f]{16}\.[0-9a-f]{16}\.part")
_SPLITS_OF_PART = {"dev": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Store:
    """The user's rows, stored in a folder of the cache.

    Args:
        folder: Folder with rows.arrow, about.json and, for each part, a file with the positions of its rows.
        about: Content of about.json: the summary of the rows from `RowBuilder.build`.
        sources: Files or datasets that the user named, by part.
        chat: The option `chat`.
    """

    folder: Path
    about: dict[str, Any]
    sources: dict[str, Source]
    chat: str = "auto"

    def load(self) -> SplitData:
        """Return the examples of the three parts. They stay on disk until they are accessed."""
        import numpy as np

        rows = self.folder / "rows.arrow"
        chat = "" if not self.about["chat"] else "template" if self.chat == "auto" else self.chat
        train, dev, test = (StoredRows(rows, np.load(self.folder / f"{part}.npy"), chat) for part in PARTS)
        stored = dict(zip(PARTS, (train, dev, test), strict=True))

        def name(part: str, index: int) -> str:
            line = stored[part].line_of(index)
            return row_name(part, index) if line is None else f"{self._file_of(part, index)}:{line}"

        return SplitData(train, dev, test, tuple(self.about["labels"]), name)

    def _file_of(self, part: str, index: int) -> str:
        """Return the name of the file with an example. For a dataset that is not read from files: its name."""
        own = part if part in self.sources else "train"
        files = [name for first, name in self.about["files"].get(own, []) if first <= index]
        return files[-1] if files else self.sources[own].name


def open_store(options: RowOptions) -> Store:
    """Return the store of the user's rows, newly made or from the cache.

    Raises:
        UserError: A file is missing, a row cannot be used, a part is empty, or a file changed while it was read.
    """
    sources, cuts = find_sources(options)
    states = {part: source.state() for part, source in sources.items()}
    return _store(options, tuple(sources.items()), tuple(cuts.items()), tuple(states.items()))


def given_options(options: RowOptions) -> dict[str, Any]:
    """Return the options that differ from their defaults, without `data_dir`."""
    defaults = {field.name: field.default for field in fields(RowOptions) if field.name != "data_dir"}
    return {key: getattr(options, key) for key, value in defaults.items() if getattr(options, key) != value}


@functools.lru_cache(maxsize=4)
def _store(options: RowOptions, sources: Any, cuts: Any, states: Any) -> Store:
    places = [(part, str(source.path.resolve() if source.path else source.name)) for part, source in sources]
    unlike = {key: value for key, value in given_options(options).items() if key not in ("max_length", "sha256")}
    options_hash = _short_hash([_LAYOUT, places, unlike])
    folder = cache_dir() / "lines" / f"{options_hash}-{_short_hash(states)}"
    kept = _about(folder)
    # Until a dataset on the hub is loaded, it is unknown whether the dataset has changed. Its store in the cache is
    # therefore used only if the store has the hash in the recipe.
    unsure = any(source.path is None for _, source in sources) and (not kept or kept["sha256"] != options.sha256)
    if kept is None or unsure:
        _make(options, dict(sources), dict(cuts), dict(states), folder, options_hash)
        kept = _about(folder)
    if kept is None:
        raise UserError(f"the rows in {folder} were removed while they were read; start again")
    with contextlib.suppress(OSError):  # a cache that can only be read is never cleared
        os.utime(folder)
    return Store(folder, kept, dict(sources), options.chat)


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _short_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def find_sources(options: RowOptions) -> tuple[dict[str, Source], dict[str, float]]:
    """Return two dicts by part: files or datasets, and sizes of the parts that are cut from the training rows.

    A size is a share (below 1) or a number of rows; 0 means the default size.
    """
    text = (options.encoding, options.delimiter, "" if options.quoting == "auto" else options.quoting)
    train = find_source(options.train, options.data_dir, options.format, "train", options.config, text)
    sources, cuts = {"train": train}, {}
    splits = split_names(train)
    for part, names in reversed(_SPLITS_OF_PART.items()):
        given = getattr(options, part)
        own = given if given in splits else next((name for name in names if name in splits), "") if given == "" else ""
        if options.split_column and given != "":
            raise UserError(f"lines has both split_column and {part}; leave one of them out")
        if isinstance(given, float | int):
            cuts[part] = given
        elif own:
            sources[part] = find_source(options.train, options.data_dir, "dataset", own, options.config, text)
        elif given:
            sources[part] = find_source(given, options.data_dir, options.format, "train", options.config, text)
        elif not options.split_column:
            cuts[part] = 0
    if options.fold:
        sources.pop("dev", None)
        if "test" in cuts and options.test != "":
            raise UserError("with folds, test must be a file: every other row is in a fold")
        cuts = {}
    if not options.sha256:  # a saved recipe of a study has `sha256`, and must stay valid
        _refuse_unused(options, {form for source in sources.values() for form in _formats(source)})
    return sources, cuts


def _formats(source: Source) -> set[str]:
    """Return the format of a source, or the formats of the files in a folder of tables."""
    splits = folder_files(source)
    return {source.format} if splits is None else {file.format for files in splits.values() for file in files}


# Options for reading files, each with the formats that it is for.
_FORMATS_OF = {
    "quoting": ("csv", "tsv"),
    "delimiter": ("csv", "tsv"),
    "encoding": ("csv", "tsv", "jsonl"),
    "config": ("dataset",),
}


def _refuse_unused(options: RowOptions, formats: set[str]) -> None:
    """Raise UserError for an option that has no meaning for any of the data's formats."""
    for key, allowed in _FORMATS_OF.items():
        value = getattr(options, key)
        if value not in ("", "auto") and not formats & set(allowed):
            users, found = " and ".join(allowed), " and ".join(sorted(formats))
            raise UserError(
                f"{key} is {value!r:.40}, but only {users} data use it, and {options.train} is read as "
                f"{found}; leave {key} out"
            )


def _make(
    options: RowOptions,
    sources: dict[str, Source],
    cuts: dict[str, float],
    states: dict[str, Any],
    folder: Path,
    options_hash: str,
) -> None:
    """Write a store, and remove the stores of older states of the files."""
    partial = folder.with_name(f".{options_hash}.{secrets.token_hex(8)}.part")
    try:
        partial.mkdir(parents=True)
        try:
            about = RowBuilder(options, partial).build(sources, cuts)
        except UnusableCategories as why:
            note = f"warning: rows are not grouped by the column 'category': {why}"
            about = RowBuilder(replace(options, category=""), partial, note).build(sources, cuts)
        for part, source in sources.items():
            if source.state() != states[part]:
                raise UserError(f"{source.name} changed while it was read; wait until it is written, then start again")
        (partial / "about.json").write_text(json.dumps(about), encoding="utf-8")
        replace_folder(partial, folder)
        # the names of all stores of these files begin with `options_hash`
        for old in set(folder.parent.glob(f"{options_hash}-*")) - {folder}:
            shutil.rmtree(old, ignore_errors=True)
        _remove_unused(folder.parent)
    except OSError as error:
        if (folder / "about.json").is_file():  # another process has just written the same store
            return
        raise UserError(
            f"the rows of {options.train} cannot be kept in {folder.parent} ({error.strerror}); {cache_advice()}"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_unused(cache: Path) -> None:
    """Remove the stores that were not used for a long time, and old partial stores."""
    now = time.time()
    for entry in filter(lambda path: _STORE_NAME.fullmatch(path.name), cache.iterdir()):
        days = _DAYS_PARTIAL if entry.suffix == ".part" else _DAYS_UNUSED
        with contextlib.suppress(OSError):  # another process may remove the same store
            if now - entry.stat().st_mtime > days * 24 * 3600:
                shutil.rmtree(entry, ignore_errors=True)
