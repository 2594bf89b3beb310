"""Find the user's data by its name: a file and its format, a folder, or a dataset on the hub."""

from __future__ import annotations

import glob
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from petransfer.errors import UserError
from petransfer.plurals import count
from petransfer.unreadable_files import refuse_unreadable
from petransfer.user_paths import expanded, is_hub_name, refuse_address
from petransfer.wrong_paths import weight_file_advice

FORMATS = ("tsv", "csv", "jsonl", "parquet", "arrow", "dataset")
COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")
SUPPORTED = "tsv, csv, json, jsonl, parquet and arrow files (text files also as .gz, .bz2, .xz, .zip or .zst)"
_SUFFIXES = {
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".feather": "arrow",
    ".arrow": "arrow",
    ".ipc": "arrow",
}
_SPREADSHEET = "a spreadsheet; save the sheet as CSV (UTF-8)"
_ARCHIVE = "an archive; unpack it and name the file"
_UNSUPPORTED = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"), _SPREADSHEET),
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf", ".pdf", ".html", ".htm", ".md"), "a document; write a table"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".joblib"), "a Python pickle, which can run code; save a table"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), "a database; export the table as CSV"),
    **dict.fromkeys((".xml", ".yaml", ".yml"), "not a table; write one JSON object a line"),
    **dict.fromkeys(
        (".tmx", ".xlf", ".xliff", ".po", ".pot", ".mo", ".ts"),
        "a file of translations; write a tsv file with a text, a tab and its translation in every line",
    ),
    **dict.fromkeys((".npy", ".npz", ".h5", ".hdf5", ".avro", ".orc", ".rds", ".sav", ".dta"), "not supported"),
}


@dataclass(frozen=True)
class Source:
    """A file, a folder or a dataset on the hub, from which rows are read.

    Args:
        name: Name for messages, as the user wrote it. A path below the current folder is made relative.
        format: One of `FORMATS`.
        path: File or folder. None for a hub id.
        split, config: Split and configuration of a dataset.
        encoding, delimiter, quoting: Values that the user gave. Empty: detected.
    """

    name: str
    format: str
    path: Path | None
    split: str = ""
    config: str = ""
    encoding: str = ""
    delimiter: str = ""
    quoting: str = ""

    def state(self) -> tuple[int, ...]:
        """Return the inode, size and modification time of every file. Empty for a dataset on the hub."""
        if self.path is None:
            return ()
        try:
            inside = [path for path in sorted(self.path.rglob("*")) if path.exists()]  # some editors write broken links
            found = [path.stat() for path in (self.path, *inside)]
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); correct the name of the data") from None
        return tuple(number for each in found for number in (each.st_ino, each.st_size, each.st_mtime_ns))


def find_source(
    name: str,
    folder: Path | None,
    form: str = "",
    split: str = "",
    config: str = "",
    text: tuple[str, str, str] = ("", "", ""),
) -> Source:
    """Return the source with this name: a file, a folder or a dataset on the hub.

    Args:
        folder: Folder in which paths are looked for before the current folder. None: only the current folder.
        form: Format. Empty: detected from the name.
        text: Encoding, delimiter and quoting of a text file. An empty value is detected from the file.
    """
    refuse_address(name, "the file")
    if name == "-":
        raise UserError("- stands for standard input, but rows cannot be read from it; save them to a file first")
    places = [folder / name, expanded(name)] if folder else [expanded(name)]
    path = next((place for place in places if place.exists()), None)
    if path is not None and path.is_dir():
        return Source(shown_path(name), "dataset", path, split, config, *text)
    if path is not None:
        name = shown_path(name)
        if not path.is_file():
            raise UserError(f"{name} is a pipe or a device, which can be read only once; save its rows in a file first")
        refuse_unreadable(path, name)
        return Source(name, form or _format(path, name), path, "", "", *text)
    if (
        form not in ("", "dataset")
        or name.startswith((".", "/", "~"))
        or is_file_name(name)
        or not is_hub_name(name.partition("@")[0])
    ):
        _refuse_several(name, folder)
        where = " or ".join(str(place) for place in dict.fromkeys([folder or Path.cwd(), Path.cwd()]))
        sought = "" if Path(name).is_absolute() or name.startswith("~") else f" in {where}"
        raise UserError(
            f"no file {name}{sought}; supported are {SUPPORTED}, folders that `datasets` loads, and ids of data sets "
            "on the hub"
        )
    return Source(name, "dataset", None, split, config)


def joining_advice(files: Sequence[str]) -> str:
    """Return how to use the rows of several files, for a message. The names can be patterns such as `data/*.csv`."""
    names = " ".join(name if glob.has_magic(name) else quote(name) for name in files)
    return (
        f"rows are read from one file or one folder: `mkdir joined; cp {names} joined` copies them into the folder "
        "joined"
    )


def _refuse_several(name: str, folder: Path | None) -> None:
    """Raise UserError if a name stands for several files: a pattern such as `data/*.csv`, or `a.csv,b.csv`."""
    parts = [part.strip() for part in name.split(",")]
    if glob.has_magic(name):
        found = glob.glob(name, root_dir=folder) or glob.glob(str(expanded(name)))
        if not found:
            raise UserError(f"no file matches {name}; correct the name")
        advice = joining_advice([name]) if len(found) > 1 else f"name it: {found[0]}"
        raise UserError(f"{name} stands for {count(len(found), 'file')}; {advice}")
    if len(parts) > 1 and all(expanded(part).is_file() for part in parts):
        raise UserError(f"{name} names {len(parts)} files; {joining_advice(parts)}")


def shown_path(name: str) -> str:
    """Return a path for messages. A path below the current folder is made relative."""
    here = Path.cwd()
    return str(Path(name).relative_to(here)) if Path(name).is_relative_to(here) and Path(name) != here else name


def _is_hidden(member: str) -> bool:
    """Return whether a file in a zip archive is one that macOS or Windows add."""
    return member.startswith("__MACOSX/") or member.rpartition("/")[2].lower() in (
        ".ds_store",
        "thumbs.db",
        "desktop.ini",
    )


def zip_member(archive: zipfile.ZipFile, name: str) -> str:
    """Return the name of the only file in a zip archive.

    Raises:
        UserError: The archive has no file, several files or a password.
    """
    members = [m for m in archive.namelist() if not m.endswith("/") and not _is_hidden(m)]
    if "[Content_Types].xml" in members:
        raise UserError(f"{name} is an Office file, such as {_SPREADSHEET}")
    if len(members) != 1:
        found = ", ".join(members[:5]) or "none"
        raise UserError(
            f"{name} must contain one file but contains {len(members)} ({found}); unpack it and name the file"
        )
    if archive.getinfo(members[0]).flag_bits & 1:
        raise UserError(f"{name} has a password; unpack it and name the file")
    return members[0]


def _format(path: Path, name: str) -> str:
    suffix = suffix_of(path)
    if path.suffix.lower() == ".zip" and suffix not in _SUFFIXES:
        try:
            with zipfile.ZipFile(path) as archive:
                suffix = Path(zip_member(archive, name)).suffix.lower()
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{name} cannot be read as a zip file ({error})") from None
    if suffix in _UNSUPPORTED:
        raise UserError(f"{name} is {_UNSUPPORTED[suffix]}; supported are {SUPPORTED}")
    if suffix not in _SUFFIXES and (advice := weight_file_advice(path)) and not parallel_advice(path):
        raise UserError(f"{name} has no rows: it is {advice.partition(';')[0]}; name a file with rows after the model")
    if suffix not in _SUFFIXES:
        named = f"'{suffix}' is not a known format" if suffix else "the file name has no suffix"
        formats = ", ".join(FORMATS[:-1])
        raise UserError(
            f"{name}: {named}; {parallel_advice(path)}if its rows are in one of the formats {formats}, rename it; for "
            "`petransfer train`, you can also name the format as in --set task.options.format=tsv"
        )
    return _SUFFIXES[suffix]


def parallel_advice(path: Path) -> str:
    """Return how to make a tsv file of two parallel files, such as train.en and train.de. Empty for other files.

    Args:
        path: One of the two files, or a folder with both.
    """
    beside = sorted(path.iterdir() if path.is_dir() else path.parent.glob(f"{glob.escape(path.stem)}.*"))
    stems: dict[str, list[Path]] = {}
    for file in beside:
        if file.is_file() and file.suffix and not is_file_name(file.name) and (path.is_dir() or file != path):
            stems.setdefault(file.stem, [] if path.is_dir() else [path]).append(file)
    for stem, files in stems.items():
        if len(files) > 1:
            first, second = files[:2]
            made = first.with_name(f"{stem}.tsv")
            command = " ".join(["paste", *(quote(str(file)) for file in (first, second)), ">", quote(str(made))])
            return (
                f"if {first.name} and {second.name} hold the texts of a parallel corpus, join them with `{command}`; "
            )
    return ""


def suffix_of(path: Path) -> str:
    """Return the suffix in lower case, without the suffix of a compression: `.csv` for `data.csv.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def table_format(path: Path) -> str:
    """Return the format of a table by its name. '' for other files, and for `.txt`, which can be any text."""
    suffix = suffix_of(path)
    return "" if suffix == ".txt" else _SUFFIXES.get(suffix, "")


def is_file_name(name: str) -> bool:
    """Return whether a name ends in the suffix of a file format."""
    suffix = suffix_of(Path(name.partition("@")[0]))
    return suffix in _SUFFIXES or suffix in _UNSUPPORTED or Path(name).suffix.lower() in COMPRESSED
