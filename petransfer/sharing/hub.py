"""Upload adapters to the Hugging Face Hub in one commit, and download them file by file, with huggingface_hub."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from petransfer.errors import UserError, reason_of
from petransfer.sharing.bundle_files import CONFIG, LIMITS, PROVENANCE, TOKENIZER_FILES, WEIGHTS, without_weights
from petransfer.sharing.foreign_formats import foreign_format
from petransfer.user_paths import is_hub_name

# The time limit in seconds for a connection to the hub.
SECONDS = 3.0
_PROXIES = ("https_proxy", "http_proxy", "all_proxy")


@dataclass(frozen=True)
class PushResult:
    """An uploaded adapter.

    url: address of the upload's commit.
    commit: sha of the upload's commit.
    private: whether the repository is private.
    notes: warnings about the card.
    """

    url: str
    commit: str
    private: bool
    notes: tuple[str, ...] = ()


def push(name: str, contents: Mapping[str, Path | bytes], public: bool, message: str) -> PushResult:
    """Upload a bundle's files to a hub repository in one commit.

    Args:
        name: `user/name`.
        contents: path or bytes of each file, by the file's name in the repository.
        public: whether the repository is public. The visibility of an existing repository is never changed.
        message: the commit message.

    Raises:
        UserError: the name is not valid, the hub cannot be reached or refuses the upload, or an existing repository has
            another visibility.
    """
    if "/" not in name or not is_hub_name(name):
        raise UserError(f"'{name}' is not a valid repository id; write user/name")
    with _plain_errors(f"{name} was not pushed"):
        from huggingface_hub import CommitOperationAdd, HfApi

        refuse_offline(
            advice="`petransfer adapter pack` writes the adapter to a file, which can be shared without the hub"
        )
        api = HfApi()
        api.create_repo(name, private=not public, exist_ok=True)
        private = bool(api.model_info(name).private)
        if not private and not public:
            raise UserError(f"{name} is already public; add --public to confirm that the adapter may be public")
        if private and public:
            raise UserError(f"{name} is already private; make it public on the hub, or leave --public out")
        files = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in sorted(contents.items())
        ]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done = api.create_commit(name, files, commit_message=message)
        warned = [reason_of(one.message) for one in caught if "README.md" in str(one.message)]
        return PushResult(str(done.commit_url), str(done.oid), private, tuple(warned))


def holds_adapter(source: str) -> bool:
    """Return whether a repository `owner/name[@revision]` contains an adapter, not a whole model.

    Raises:
        UserError: there is no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    name, _, at = source.partition("@")
    if isinstance(try_to_load_from_cache(name, "config.json", revision=at or None), str):
        return isinstance(try_to_load_from_cache(name, CONFIG, revision=at or None), str)
    with _plain_errors(f"{source} could not be found"):
        refuse_offline(source)
        names = {entry.path for entry in HfApi().list_repo_tree(name, revision=at or None)}
        return CONFIG in names or "config.json" not in names


def fetch(source: str, target: Path) -> str:
    """Download an adapter's files from `owner/name[@revision]` to `target`, and return the commit.

    Other files of the repository are not downloaded.

    Raises:
        UserError: there is no such repository or adapter, a file is too large, or the hub cannot be reached.
    """
    name, _, at = source.partition("@")
    with _plain_errors(f"{source} could not be fetched"):
        from huggingface_hub import HfApi, hf_hub_download

        refuse_offline(source)
        api = HfApi()
        commit = str(api.model_info(name, revision=at or None).sha)
        sizes = {entry.path: getattr(entry, "size", 0) for entry in api.list_repo_tree(name, revision=commit)}
        for path in _wanted(name, sizes):
            hf_hub_download(name, path, revision=commit, local_dir=target)
        return commit


def _wanted(name: str, sizes: Mapping[str, int]) -> list[str]:
    if CONFIG not in sizes:
        raise UserError(f"{name} holds no adapter that peft reads: {foreign_format(sizes) or f'it has no {CONFIG}'}")
    if WEIGHTS not in sizes:
        raise UserError(f"{name} is refused: {foreign_format(sizes) or without_weights(sizes, None)}")
    wanted = [path for path in sizes if path in LIMITS]
    large = next((path for path in wanted if sizes[path] > LIMITS[path]), None)
    if large:
        raise UserError(f"{name} is refused: {large} has {sizes[large]:,} bytes; at most {LIMITS[large]:,} are read")
    own = [] if PROVENANCE in sizes else [path for path in TOKENIZER_FILES if path in sizes]
    return wanted + [path for path in own if sizes[path] <= TOKENIZER_FILES[path]]


def refuse_offline(
    source: str = "", advice: str = "name a folder, or a file that `petransfer adapter pack` wrote"
) -> None:
    """Raise UserError at once if the hub is switched off or cannot be reached.

    Args:
        source: hub id to download, for the message. Empty for other uses of the hub.
        advice: what the user can do without the hub, for the message.
    """
    # huggingface_hub itself would retry many times before its error.
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"this needs the hub, and HF_HUB_OFFLINE is set; {advice}. Or unset HF_HUB_OFFLINE")
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    place = urlsplit(constants.ENDPOINT)
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname or "", port), timeout=SECONDS).close()
    except OSError as error:
        missing = f"there is no folder or file {source}, and " if source else ""
        raise UserError(
            f"{missing}the hub at {place.hostname} cannot be reached ({error.strerror or error}); {advice}"
        ) from None


@contextlib.contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Convert errors of huggingface_hub into a UserError that begins with `what` and has no access tokens."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # huggingface_hub and its HTTP library raise dozens of types of errors
        raise UserError(f"{what}: {without_tokens(_first(error))}{_advice(error)}") from None


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join([*lines[:1], *lines[-1:][: len(lines) - 1]]) or type(error).__name__)[:300]


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return "; `hf auth login`, or set HF_TOKEN to a token with the required permission" if status in (401, 403) else ""


def without_tokens(text: str) -> str:
    """Return a text with `***` in place of access tokens."""
    from huggingface_hub import get_token

    known = [token for token in (get_token(), os.environ.get("HF_TOKEN")) if token]
    for token in known:
        text = text.replace(token, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "***", text)


def quiet() -> None:
    """Silence the progress bars and the warnings of huggingface_hub."""
    import logging

    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    for name in ("huggingface_hub", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def as_json(pushed: PushResult) -> dict[str, Any]:
    """Return the fields of an upload that `--json` prints."""
    return {"url": pushed.url, "commit": pushed.commit, "private": pushed.private}
