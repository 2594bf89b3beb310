"""Pack an adapter into a bundle without paths of this machine. Packing a run twice gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from petransfer.atomic_files import write_text
from petransfer.errors import UserError
from petransfer.models.registry import file_sha256
from petransfer.sharing import bundle_zip as archive
from petransfer.sharing.bundle import Bundle, checked_bundle, without_records
from petransfer.sharing.bundle_files import (
    CARD,
    CONFIG,
    EXAMPLES,
    MANIFEST,
    PROVENANCE,
    RECIPE,
    RESULT,
    WEIGHTS,
    with_unix_line_ends,
)
from petransfer.sharing.card import card
from petransfer.sharing.card_metadata import CardOptions
from petransfer.sharing.examples_file import without_texts
from petransfer.sharing.safe_reading import read_text, read_yaml
from petransfer.user_paths import without_folder

_PATHS = re.compile(
    r"(?<![\w:/.~-])/(?:home|root|Users|mnt|media|data|tmp|var|opt|srv|usr|etc|work|workspace|scratch|content|private)"
    r"/[\w.~-]+|(?<![\w/])~/[\w.-]+|\b[A-Za-z]:\\[\w.-]+"
)
# The keys of a recipe whose values are texts, and never paths, although they may begin with `/` or `~`.
_TEXTS = frozenset(
    ("description", "prefix", "added_tokens", "template", "input", "target", "input_column", "target_column",
     "category", "messages", "split_column", "delimiter")
)  # fmt: skip
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")


def contents(bundle: Bundle, card_options: CardOptions) -> dict[str, Path | bytes]:
    """Return the path or the bytes of each file to share, by name.

    The card and the manifest (sha256 of each file) are written anew. Paths in the recipe and texts in examples.parquet
    are removed.

    Raises:
        UserError: the run is not finished, a file was changed, or a file contains an access token or a path of this
            machine.
    """
    checked_bundle(bundle)
    if bundle.provenance is None or "claims" not in bundle.provenance:
        raise without_records(bundle.label, "pack or push")
    if RESULT not in bundle.files:
        raise UserError(
            f"{bundle.label} has no result.json: the run is not finished; repeat the command that started it"
        )
    found: dict[str, Path | bytes] = {WEIGHTS: bundle.weights}
    found |= {name: with_unix_line_ends(bundle.files[name]) for name in (CONFIG, PROVENANCE, RESULT)}
    if RECIPE in bundle.files:
        found[RECIPE] = without_paths(read_text(bundle.files[RECIPE]))
    if EXAMPLES in bundle.files:
        found[EXAMPLES] = without_texts(bundle.files[EXAMPLES])
    found[CARD] = card(bundle, card_options).encode()
    for name, content in found.items():
        if name not in (WEIGHTS, EXAMPLES):
            refuse_private(name, content.decode() if isinstance(content, bytes) else read_text(content))
    hashes = {name: _sha256(content) for name, content in sorted(found.items())}
    return {**found, MANIFEST: _manifest(hashes).encode()}


def without_card(bundle: Bundle) -> Bundle:
    """Return an adapter without its card, and without the card's sha256. Use it to write a new card."""
    files = {name: path for name, path in bundle.files.items() if name != CARD}
    hashes = {name: sha256 for name, sha256 in (bundle.manifest or {}).items() if name != CARD}
    return replace(bundle, files=files, manifest=None if bundle.manifest is None else hashes)


def write_card(bundle: Bundle, text: str, target: Path) -> None:
    """Write the card of an adapter to `target`. In a packed adapter's folder, its sha256 is put into the manifest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    if bundle.manifest is not None and target.absolute() == (bundle.weights.parent / CARD).absolute():
        hashes = {**bundle.manifest, CARD: _sha256(text.encode())}
        write_text(bundle.files[MANIFEST], _manifest(hashes))


def pack(bundle: Bundle, target: Path, card_options: CardOptions) -> str:
    """Write the bundle's zip file and return its sha256.

    Raises:
        UserError: `contents` refuses a file, or `target` exists, cannot be written or has the wrong suffix.
    """
    if not target.name.endswith(archive.SUFFIX):
        raise UserError(f"{target}: the file name must end in {archive.SUFFIX}")
    if target.exists():
        raise UserError(f"{target} exists; delete it or use another --out")
    try:
        archive.write_zip(target, contents(bundle, card_options))
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); use another --out") from None
    return _sha256(target)


def without_paths(recipe: str) -> bytes:
    """Return a recipe as YAML with each path replaced by its last part: `/home/me/t5` becomes `t5`."""
    content = read_yaml(recipe, RECIPE)
    content.pop("data_dir", None)
    return yaml.safe_dump(_placeless(content), sort_keys=False, allow_unicode=True).encode()


def _placeless(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _placeless(one, str(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [_placeless(one, key) for one in value]
    return without_folder(value) if isinstance(value, str) and key not in _TEXTS else value


def refuse_private(name: str, text: str) -> None:
    """Raise UserError if a file's text contains a path of this machine, an access token or a password."""
    tokens = [os.environ.get(key, "") for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PETRANSFER_SLOG_PASSWORD")]
    if _TOKEN.search(text) or any(len(token) >= 8 and token in text for token in tokens):
        raise UserError(f"{name} seems to contain an access token or a password; remove it, then pack again")
    homes = [home for home in (os.path.expanduser("~"), str(Path.cwd())) if len(home) > 5]
    found = _PATHS.search(text)
    place = found[0] if found else next((home for home in homes if home in text), None)
    if place:
        raise UserError(f"{name} names a folder of this machine ({place[:60]}); remove it, then pack again")


def _manifest(hashes: Mapping[str, str]) -> str:
    """Return the content of manifest.json. `hashes`: sha256 of each file, by name."""
    return json.dumps({"format": 1, "files": hashes}, indent=1) + "\n"


def _sha256(content: bytes | Path) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content)
