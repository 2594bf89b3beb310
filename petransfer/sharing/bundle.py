"""A bundle: an adapter with card, provenance, recipe and results, from a run's folder, a folder, a zip or the hub."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.errors import UserError
from petransfer.models.registry import file_sha256
from petransfer.recipe.run_spec import RunSpec
from petransfer.sharing import bundle_zip as archive
from petransfer.sharing import file_checks as checks
from petransfer.sharing.provenance_checks import NAME as PROVENANCE
from petransfer.sharing.provenance_checks import check_result, spec_in
from petransfer.sharing.safe_reading import Tensors, card_data, read_header, read_json, read_text, read_yaml

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
RECIPE, RESULT, EXAMPLES, MANIFEST = "recipe.yaml", "result.json", "examples.parquet", "manifest.json"
_HEX = re.compile(r"[0-9a-f]{64}")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Bundle:
    """What was found. label: how messages call it. files: by their names in a bundle.

    provenance, spec, manifest: None where the adapter was not made by petransfer, or not packed. commit: of the hub.
    here: the run's own folder, where it is one of this machine.
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
        """adapter_model.safetensors."""
        return self.files[WEIGHTS]

    @property
    def card(self) -> str | None:
        """README.md."""
        return read_text(self.files[CARD]) if CARD in self.files else None

    def result(self) -> dict[str, Any] | None:
        """result.json."""
        return read_json(self.files[RESULT]) if RESULT in self.files else None


@contextlib.contextmanager
def opened(source: str, revision: str | None = None) -> Iterator[Bundle]:
    """The bundle at a folder, a zip, or `owner/name[@revision]` on the hub; kept for as long as it lasts.

    Raises:
        UserError: there is none, or it is not one that may be opened.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        yield of_folder(path)
        return
    with tempfile.TemporaryDirectory(prefix="petransfer-") as kept:
        folder = Path(kept)
        if path.is_file():
            archive.read_zip(path, folder)
            yield of_folder(folder, path.name)
        elif _HUB.fullmatch(source) and not source.endswith(".zip"):
            from petransfer.sharing.hub import fetch

            commit = fetch(source, revision, folder)
            yield of_folder(folder, source, commit)
        else:
            raise _nothing(source)


def of_folder(folder: Path, label: str | None = None, commit: str | None = None) -> Bundle:
    """The adapter in a folder or in the run's folder that it is.

    Raises:
        UserError: there is none, a file is not what its name says, or they do not agree.
    """
    label = label or str(folder)
    if (folder / "model").is_dir() and not (folder / "adapter").is_dir():
        raise UserError(f"{label} is the run of a whole model, not of an adapter; share its model/ with transformers")
    files, here = _files(folder, "adapter")
    provenance = read_json(files[PROVENANCE]) if PROVENANCE in files else None
    _refuse_incomplete(files, folder, label)
    config, tensors = read_json(files[CONFIG]), read_header(files[WEIGHTS])
    manifest = _manifest(files[MANIFEST]) if MANIFEST in files else None
    if RESULT in files:
        check_result(read_json(files[RESULT]))
    if CARD in files:
        card_data(read_text(files[CARD]))
    if RECIPE in files:
        read_yaml(read_text(files[RECIPE]), RECIPE)
    spec = None if provenance is None else spec_in(provenance)
    return Bundle(label, files, config, tensors, provenance, spec, manifest, here, commit)


def of_whole_model(folder: Path) -> Bundle:
    """What a run of a whole model, or the `model/` of one, says of its data and figures: without tensors to apply.

    Raises:
        UserError: it was not made by petransfer, or is damaged.
    """
    files, here = _files(folder, "model")
    if PROVENANCE not in files:
        raise _nothing(str(folder))
    provenance = read_json(files[PROVENANCE])
    return Bundle(str(folder), files, {}, {}, provenance, spec_in(provenance), None, here)


def checked(bundle: Bundle) -> Bundle:
    """The bundle, whose configuration, tensors and hashes agree.

    Raises:
        UserError: they do not.
    """
    checks.check(bundle.config, bundle.tensors)
    other = other_base(bundle)
    if other:
        raise UserError(f"{bundle.label} is refused: {other}")
    wrong = differences(bundle)
    if wrong:
        raise UserError(f"{bundle.label} is refused: {next(iter(wrong.values()))}")
    return bundle


def other_base(bundle: Bundle) -> str | None:
    """What is said where plain peft would be led to another base than the run was on."""
    told, made = bundle.config.get("base_model_name_or_path"), bundle.spec and bundle.spec.checkpoint.name
    if made is None or told is None or told == made:
        return None
    return f"{CONFIG} names the base {str(told)[:80]!r}, the provenance {made!r}"


def differences(bundle: Bundle) -> dict[str, str]:
    """What is said of each file that is not the one that was packed or saved; empty where all are."""
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
        return {name: f"{name} is missing, and stands in the list of what was {done}"}
    if expected is None:
        return {name: f"{name} is not in the list of what was {done}"}
    got = file_sha256(path)
    if got == expected:
        return {}
    what = "the card was swapped or changed: " if name == CARD else ""
    return {name: f"{what}{name} is not the file that was {done}: its sha256 is {got[:12]}..., not {expected[:12]}..."}


def _files(folder: Path, kind: str) -> tuple[dict[str, Path], Path | None]:
    """The files of a bundle where they lie: beside each other, or in a run's folder and its adapter/ or model/."""
    inner = folder / kind if (folder / kind).is_dir() else folder
    here = next((one for one in (folder, inner.parent) if (one / "spec.json").is_file()), None)
    files: dict[str, Path] = {}
    for path in sorted(inner.iterdir()):
        if path.name in archive.LIMITS:
            files[path.name] = _regular(path)
    for name in (RESULT, EXAMPLES):
        if here and (here / name).is_file():
            files.setdefault(name, _regular(here / name))
    study = here.parent.parent / RECIPE if here else None
    if study and study.is_file():
        files.setdefault(RECIPE, _regular(study))
    return files, here


def _nothing(label: str) -> UserError:
    return UserError(
        f"{label} holds no finished adapter or model; name a folder like results/<study>/runs/<run-id>, a bundle or "
        "owner/name on the hub"
    )


def _refuse_incomplete(files: Mapping[str, Path], folder: Path, label: str) -> None:
    if CONFIG not in files:
        raise _nothing(label)
    if WEIGHTS not in files:
        pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("adapter/*.bin")))
        why = f"only {pickles[0]}, a pickle, which runs code when opened" if pickles else f"no {WEIGHTS}"
        raise UserError(f"{label} is refused: it has {why}; adapters are safetensors only")


def _regular(path: Path) -> Path:
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path} is a link or no file; an adapter's files are plain ones")
    limit = archive.LIMITS[path.name]
    if path.stat().st_size > limit:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {limit:,} are read")
    return path


def _manifest(path: Path) -> dict[str, str]:
    files = read_json(path).get("files")
    if not isinstance(files, dict) or not all(isinstance(one, str) and _HEX.fullmatch(one) for one in files.values()):
        raise UserError(f"{MANIFEST} has no list of files with their sha256; get the bundle again")
    unknown = next((name for name in files if name not in archive.LIMITS), None)
    if unknown is not None:
        raise UserError(f"{MANIFEST} lists {unknown[:80]!r}, which {archive.wrong_name(unknown)}")
    return files


def sha256_of(content: bytes | Path) -> str:
    """Of bytes or of a file."""
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content)
