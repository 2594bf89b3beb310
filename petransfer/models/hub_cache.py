"""Find files that are missing from the copy of a hub checkpoint in the local cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from petransfer.data.hub_network import use_cache_if_unreachable, why_unreachable
from petransfer.errors import UserError
from petransfer.models.hashes import weight_files
from petransfer.recipe.run_spec import CheckpointSpec

# A tokenizer has at least one of these files. Byte-level tokenizers such as ByT5's have none, but name their class.
VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "vocab.json",
    "vocab.txt", "tekken.json",
)  # fmt: skip
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
# Suffixes of configurations, tokenizers and chat templates, and names of other files of tokenizers.
_SMALL, _OF_TOKENIZERS = {".json", ".model", ".jinja"}, {*VOCABULARIES, "merges.txt", "target.spm"}


def missing_file(name: str, revision: str, weights_of: CheckpointSpec | None = None) -> str:
    """Return a file that the copy of a checkpoint in the cache lacks. '' if there is no copy, or none is missing.

    Args:
        name: The checkpoint's id on the hub.
        weights_of: The same checkpoint, if its weights are needed.
    """
    repository, snapshot = _repository(name), _snapshot(name, revision)
    if not snapshot:  # another revision can be in the cache
        return "" if any(repository.glob("refs/*")) or not any(repository.glob("snapshots/*")) else f"refs/{revision}"
    # an interrupted download or a tool that frees disk space leaves links to files that do not exist
    lost = sorted(path.name for path in snapshot.iterdir() if not path.exists())
    if not (snapshot / _CONFIG).exists():
        return _CONFIG
    if weights_of and weights_of.reinit != "all":
        files = weight_files(weights_of, None)
        if not files:
            return next((one for one in lost if one.startswith(("model.", "pytorch_model."))), _WEIGHTS)
        if parts := [part for part, path in files.items() if path is None]:
            return parts[0]
    needed = (one for one in lost if Path(one).suffix in _SMALL or one in _OF_TOKENIZERS)
    return next((one for one in needed if not one.endswith(".index.json")), "")  # the index belongs to the weights


def has_one_of(place: str, revision: str | None, names: Iterable[str]) -> bool:
    """Return whether a folder, or the copy of a hub checkpoint in the cache, has one of these files."""
    folder = Path(place) if Path(place).is_dir() else _snapshot(place, revision or "main")
    return folder is not None and any((folder / name).is_file() for name in names)


def incomplete_copy(name: str, revision: str, missing: str) -> UserError:
    """Return the error for a checkpoint whose copy in the cache lacks a file while the hub cannot be reached."""
    at = "" if revision == "main" else f" --revision {revision}"
    return UserError(
        f"the copy of {name} in the local cache ({_repository(name)}) is incomplete: {missing} is missing, and the hub "
        f"cannot be reached ({why_unreachable()}); download it again with a network (`hf download {name}{at}`), or "
        "name a folder that holds the whole model"
    )


def refuse_incomplete_copy(name: str, revision: str, weights_of: CheckpointSpec | None = None) -> None:
    """Raise UserError if the copy in the cache lacks a file (see `missing_file`) and the hub cannot be reached."""
    missing = missing_file(name, revision, weights_of)
    if missing and not use_cache_if_unreachable():
        raise incomplete_copy(name, revision, missing)


def _repository(name: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")


def _snapshot(name: str, revision: str) -> Path | None:
    """Return the folder with a revision's files in the cache. None if the revision is not in the cache."""
    repository = _repository(name)
    reference = repository / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None
