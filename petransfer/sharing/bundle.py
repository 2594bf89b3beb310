"""A bundle: an adapter with its card, provenance, recipe and results, from a folder, a zip file or the hub."""

from __future__ import annotations

import contextlib
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.data.rows.source import is_file_name
from petransfer.errors import UserError
from petransfer.models.registry import file_sha256
from petransfer.recipe.run_spec import RunSpec
from petransfer.sharing import file_checks as checks
from petransfer.sharing.bundle_files import (
    CARD,
    CONFIG,
    EXAMPLES,
    LIMITS,
    MANIFEST,
    PROVENANCE,
    RECIPE,
    RESULT,
    TOKENIZER_FILES,
    WEIGHTS,
    has_sha256,
    without_weights,
    wrong_name,
)
from petransfer.sharing.bundle_zip import read_zip
from petransfer.sharing.foreign_formats import foreign_format
from petransfer.sharing.hub import fetch
from petransfer.sharing.provenance_checks import check_recipe, check_result, spec_in, spec_of_run
from petransfer.sharing.run_folders import has_model, run_folder
from petransfer.sharing.safe_reading import Tensors, card_data, read_header, read_json, read_text, read_yaml
from petransfer.user_paths import expanded, is_hub_name, refuse_address, training_around, trainings_in
from petransfer.wrong_paths import cache_advice, weight_file_advice

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Bundle:
    """The files of one adapter, or of the whole model of a run.

    label: the adapter's name in messages.
    files: path of each file, by the file's name in a bundle.
    config: content of adapter_config.json. Empty for a whole model.
    tensors: dtype and shape of each tensor, by name. Empty for a whole model.
    provenance: content of petransfer.json. None for an adapter that petransfer did not make.
    spec: specification of the run. None for an adapter that petransfer did not make.
    manifest: sha256 of each file at packing. None for an adapter that is not packed.
    here: the run's folder on this machine. None if there is no such folder.
    commit: commit on the hub. None for files that are not from the hub.
    """

    label: str
    files: Mapping[str, Path]
    config: dict[str, Any]
    tensors: Tensors
    provenance: dict[str, Any] | None
    spec: RunSpec | None
    manifest: dict[str, str] | None
    here: Path | None = None
    commit: str | None = None

    @property
    def weights(self) -> Path:
        """Path of adapter_model.safetensors."""
        return self.files[WEIGHTS]

    @property
    def card(self) -> str | None:
        """Text of README.md. None if there is no such file."""
        return read_text(self.files[CARD]) if CARD in self.files else None

    @property
    def method(self) -> str | None:
        """Name of the method with which petransfer trained the adapter. None for an adapter of another program."""
        return self.spec.method.name if self.spec else None

    def result(self) -> dict[str, Any] | None:
        """Return the content of result.json. None if there is no such file."""
        return read_json(self.files[RESULT]) if RESULT in self.files else None

    def own_tokenizer(self) -> dict[str, Path]:
        """Return the tokenizer's files beside the weights, by name. Empty for an adapter that petransfer trained."""
        folder = self.weights.parent
        names = TOKENIZER_FILES if self.provenance is None else ()
        return {name: folder / name for name in names if (folder / name).is_file()}

    def local_spec(self) -> RunSpec | None:
        """Return the spec with the places of files on this machine. None without the run's folder.

        Raises:
            UserError: spec.json is damaged, or describes another run than petransfer.json.
        """
        if self.here is None:
            return None
        found = spec_of_run(self.here)
        if self.spec and found.run_id != self.spec.run_id:
            raise UserError(
                f"{self.here / 'spec.json'} describes the run {found.run_id}, and {PROVENANCE} of {self.label} the run "
                f"{self.spec.run_id}; move the adapter out of this folder"
            )
        return found

    def template(self) -> str:
        """Return the template that builds an input from a row's columns. Empty for plain texts."""
        return str(self.spec.task.options.get("template", "")) if self.spec else ""

    def prefix(self) -> str:
        """Return the text in front of each input. Empty for a model that petransfer did not train."""
        return self.spec.task.prefix if self.spec else ""

    def chat(self) -> str:
        """Return the recipe's option `chat`: `template` or `plain`. Empty for training without chats."""
        return str(self.spec.task.options.get("chat", "")) if self.spec else ""


@contextlib.contextmanager
def open_bundle(source: str, run: str | None = None) -> Iterator[Bundle]:
    """Open the adapter in a folder, a zip file, or a hub repository `owner/name[@revision]`.

    Files from a zip or the hub are in a temporary folder, which is removed at the end of the `with` block.

    Args:
        run: first characters of a run's id. Needed for a study with several finished runs.

    Raises:
        UserError: there is no adapter, or the adapter's files fail a check.
    """
    refuse_address(source, "the adapter")
    path = expanded(source)
    if path.is_dir():
        yield bundle_of_folder(run_folder(path, run), source)
        return
    with tempfile.TemporaryDirectory(prefix="petransfer-") as kept:
        folder = Path(kept)
        if path.is_file():
            _refuse_other_file(path)
            read_zip(path, folder)
            yield bundle_of_folder(folder, path.name)
        elif is_hub_id(source):
            commit = fetch(source, folder)
            yield bundle_of_folder(folder, source, commit)
        else:
            raise nothing_found(source)


def is_hub_id(source: str) -> bool:
    """Return whether a text has the form `owner/name[@revision]`."""
    name, _, revision = source.partition("@")
    known = "/" in name and is_hub_name(name) and not source.endswith(".zip")
    return known and re.fullmatch(r"[\w./-]*", revision) is not None


def bundle_of_folder(folder: Path, label: str | None = None, commit: str | None = None) -> Bundle:
    """Return the adapter in an adapter's folder or in a run's folder.

    Raises:
        UserError: there is no adapter, or a file is damaged, too large or not a regular file.
    """
    label = label or str(folder)
    if (folder / "model").is_dir() and not ((folder / "adapter").is_dir() or has_model(folder)):
        raise UserError(f"{label} holds a whole model, not an adapter; share its model/ folder with transformers")
    files, here = _files(folder, "adapter")
    provenance = read_json(files[PROVENANCE]) if PROVENANCE in files else None
    _refuse_incomplete(files, label)
    config, tensors = read_json(files[CONFIG]), read_header(files[WEIGHTS])
    manifest = _manifest(files[MANIFEST]) if MANIFEST in files else None
    if RESULT in files:
        check_result(read_json(files[RESULT]))
    if CARD in files:
        card_data(read_text(files[CARD]))
    if RECIPE in files:
        check_recipe(read_yaml(read_text(files[RECIPE]), RECIPE))
    spec = None if provenance is None else spec_in(provenance)
    return Bundle(label, files, config, tensors, provenance, spec, manifest, here, commit)


def bundle_of_whole_model(folder: Path, label: str | None = None) -> Bundle:
    """Return the files of a whole model as a bundle.

    Args:
        folder: a run's folder, the folder model/ in a run's folder, or the folder of a merged model.

    Raises:
        UserError: the model was not made by petransfer, or is damaged.
    """
    files, here = _files(folder, "model")
    if PROVENANCE not in files:
        raise nothing_found(str(folder))
    provenance = read_json(files[PROVENANCE])
    return Bundle(label or str(folder), files, {}, {}, provenance, spec_in(provenance), None, here)


def checked_bundle(bundle: Bundle) -> Bundle:
    """Check an adapter's configuration, tensors and sha256, and return the bundle unchanged.

    Raises:
        UserError: the configuration does not fit the tensors or the run, or a file was changed.
    """
    checks.check(bundle.config, bundle.tensors, bundle.method)
    other = other_base(bundle)
    if other:
        raise UserError(f"{bundle.label} is refused: {other}")
    wrong = differences(bundle)
    if wrong:
        first = next(iter(wrong.values()))
        raise UserError(f"{bundle.label} is refused: {first}; restore this file, or get the adapter again")
    return bundle


def other_base(bundle: Bundle) -> str | None:
    """Return an error text if adapter_config.json and petransfer.json name different bases, else None."""
    # Plain peft loads the base that adapter_config.json names.
    named, made = bundle.config.get("base_model_name_or_path"), bundle.spec and bundle.spec.checkpoint.name
    if made is None or named is None or named == made:
        return None
    return f"{CONFIG} names the base {str(named)[:80]!r}, and {PROVENANCE} names {made!r}"


def differences(bundle: Bundle) -> dict[str, str]:
    """Return an error text for each changed, missing or added file, by file name.

    The manifest records the sha256 at packing. petransfer.json records the sha256 at the end of training. Different
    line ends (CRLF, LF) in text files are ignored.
    """
    found: dict[str, str] = {}
    kept = {name: path for name, path in bundle.files.items() if name != MANIFEST}
    if bundle.manifest is not None:
        for name in sorted({*kept, *bundle.manifest} - {MANIFEST}):
            found |= _difference(name, kept.get(name), bundle.manifest.get(name), "packed")
    for name, expected in ((bundle.provenance or {}).get("files") or {}).items():
        if name not in found and name != PROVENANCE:
            found |= _difference(name, kept.get(name), expected, "trained")
    return found


def _difference(name: str, path: Path | None, expected: str | None, done: str) -> dict[str, str]:
    if path is None:
        return {name: f"{name} is missing, and is in the list of files that were {done}"}
    if expected is None:
        return {name: f"{name} is not in the list of files that were {done}"}
    if has_sha256(path, expected):
        return {}
    got = file_sha256(path)
    what = "the card was swapped or changed: " if name == CARD else ""
    return {name: f"{what}{name} is not the file that was {done}: its sha256 is {got[:12]}..., not {expected[:12]}..."}


def _files(folder: Path, kind: str) -> tuple[dict[str, Path], Path | None]:
    """Return the path of each file by name, and the run's folder (None without spec.json)."""
    # In a run's folder, the folder `kind` (`adapter` or `model`) has the weights.
    inner = folder / kind if (folder / kind).is_dir() and not has_model(folder) else folder
    here = next((one for one in (folder, inner.parent) if (one / "spec.json").is_file()), None)
    files: dict[str, Path] = {}
    for path in sorted(inner.iterdir()):
        if path.name in LIMITS:
            files[path.name] = _regular(path)
    for name in (RESULT, EXAMPLES):
        if here and (here / name).is_file():
            files.setdefault(name, _regular(here / name))
    study = here.parent.parent / RECIPE if here else None
    if study and study.is_file():
        files.setdefault(RECIPE, _regular(study))
    return files, here


def _refuse_other_file(path: Path) -> None:
    """Raise UserError for a file that is no bundle but has the name of another kind of file."""
    if zipfile.is_zipfile(path):
        return
    beside = [CONFIG] if (path.parent / CONFIG).is_file() else []
    if known := foreign_format([path.name, *beside]):
        raise UserError(f"{path} is no adapter that peft reads: {known}")
    if path.suffix in {".safetensors", ".bin", ".json"} and any(
        (path.parent / name).is_file() for name in (CONFIG, "config.json")
    ):
        raise UserError(f"{path} is one file of an adapter or a model; name the folder {path.parent}")
    if (around := training_around(path)) is not None:
        raise UserError(f"{path} is one file of a training run; name the folder of the run, {around}")
    if advice := weight_file_advice(path):
        raise UserError(f"{path} is {advice}")
    if is_file_name(path.name) and path.suffix != ".zip":
        raise UserError(
            f"{path} is a file of rows, not an adapter; give it with --data to `eval`, or with --file to `predict`"
        )


def nothing_found(label: str) -> UserError:
    """Return the error for a place where there is neither an adapter nor a model."""
    folder = expanded(label)
    if folder.is_dir() and (advice := cache_advice(folder)):
        return UserError(f"{label} is {advice}")
    # a program's output folder has the adapter or model of each saved step in a folder of its own
    inner = [path.parent.name for name in (CONFIG, "config.json") for path in sorted(folder.glob(f"*/{name}"))]
    if inner:
        names = ", ".join(dict.fromkeys(inner[-5:]))
        return UserError(f"{label} holds no adapter or model; name a folder inside it that holds one: {names}")
    known = foreign_format(path.name for path in folder.iterdir()) if folder.is_dir() else None
    if known:
        return UserError(f"{label} holds no adapter that peft reads: {known}")
    return UserError(
        f"{label} holds no finished adapter or model; name the folder of a training run, {trainings_in(folder)}; or a "
        "file that `petransfer adapter pack` wrote, a checkpoint such as nano/english, or owner/name on the hub"
    )


def _refuse_incomplete(files: Mapping[str, Path], label: str) -> None:
    if CONFIG not in files:
        raise nothing_found(label)
    if WEIGHTS not in files:
        inner = files[CONFIG].parent
        names = [path.name for path in inner.iterdir()]
        raise UserError(f"{label} is refused: {foreign_format(names) or without_weights(names, inner)}")


def _regular(path: Path) -> Path:
    # links are usual in the hub's cache and with DVC; the files of a zip file cannot be links
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to a file that is missing; get the adapter again")
    if not path.is_file():
        raise UserError(f"{path} is a special file; an adapter's files are regular files")
    limit = LIMITS[path.name]
    if path.stat().st_size > limit:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {limit:,} are read")
    return path


def _manifest(path: Path) -> dict[str, str]:
    files = read_json(path).get("files")
    if not isinstance(files, dict) or not all(isinstance(one, str) and _HEX.fullmatch(one) for one in files.values()):
        raise UserError(f"{MANIFEST} has no list of files with their sha256; get the bundle again")
    unknown = next((name for name in files if name not in LIMITS), None)
    if unknown is not None:
        raise UserError(f"{MANIFEST} lists {unknown[:80]!r}, which {wrong_name(unknown)}")
    return files


def without_records(label: str, purpose: str) -> UserError:
    """Return the error for an adapter that petransfer did not make, or that lost its petransfer.json.

    purpose: what the records are needed for, such as `make a card from`.
    """
    return UserError(
        f"{label} was not made by petransfer, so there are no records to {purpose}; share the folder as it is, "
        f"such as with `hf upload USER/NAME {label}`"
    )
