"""Record the content of a local checkpoint's files, to recognise a checkpoint that was saved again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.errors import UserError
from petransfer.models.hashes import tokenizer_hashes
from petransfer.models.registry import file_sha256, hashed_files
from petransfer.recipe.run_spec import CheckpointSpec, RunSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The key of spec.json with the record of the base.
BASE_RECORD = "base_record"

# Fields of JSON files that change neither a training nor its scores.
_UNUSED = {
    "config.json": {"_name_or_path", "_commit_hash", "transformers_version", "use_cache"},
    "generation_config.json": {"_from_model_config", "_commit_hash", "transformers_version", "use_cache"},
    "tokenizer.json": {"padding", "truncation"},
    "tokenizer_config.json": {
        "_commit_hash", "cache_dir", "is_local", "local_files_only", "max_length", "model_max_length", "name_or_path",
        "pad_to_multiple_of", "padding_side", "processor_class", "special_tokens_map_file", "stride", "tokenizer_file",
        "truncation_side", "truncation_strategy",
    },
}  # fmt: skip
# Files that transformers' Trainer writes beside a model.
_TRAINER_FILES = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}
_WEIGHT_SUFFIXES = {".safetensors", ".bin"}
_MODEL_FILES = {"config.json", "generation_config.json", "pretraining.json"}


def base_record(spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the entry of spec.json that describes a run's local base or local tokenizer. Empty if neither is local.

    Args:
        tokenizer: The tokenizer that `load_tokenizer` returns for the base.
    """
    if not spec.checkpoint.source and not spec.checkpoint.tokenizer_source:
        return {}
    files = _file_hashes(Path(spec.checkpoint.source)) if spec.checkpoint.source else {}
    tokens = _tokenizer_content(tokenizer, with_template=spec.task.options.get("chat") == "template")
    return {BASE_RECORD: {"files": files, "tokenizer": tokens}}


def changed_files(checkpoint: CheckpointSpec, record: Mapping[str, Any]) -> list[str]:
    """Return the names of a local checkpoint's files whose content differs from a record of spec.json.

    Changed files of the tokenizer are ignored if the loaded tokenizer equals the recorded tokenizer.
    """
    before, now = record["files"], _file_hashes(Path(str(checkpoint.source)))
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    of_model = [name for name in changed if name in _MODEL_FILES or Path(name).suffix in _WEIGHT_SUFFIXES]
    if of_model or not changed:
        return of_model
    return [] if has_recorded_tokenizer(checkpoint, record) else changed


def has_recorded_tokenizer(checkpoint: CheckpointSpec, record: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's tokenizer is the one in a record of spec.json."""
    from petransfer.models.checkpoint_files import load_tokenizer  # imported here because it imports torch

    try:
        tokenizer = _tokenizer_content(load_tokenizer(checkpoint), with_template=True)
    except (UserError, OSError):  # the tokenizer was damaged since
        return False
    return all(tokenizer.get(name) == value for name, value in record["tokenizer"].items())


def _file_hashes(folder: Path) -> dict[str, str]:
    """Return a hash of the content of each file of a checkpoint, by file name."""
    found = {path.name: _content_hash(path) for path in hashed_files(folder) if path.name not in _TRAINER_FILES}
    return {name: digest for name, digest in found.items() if digest}


def _content_hash(path: Path) -> str:
    """Return a hash that does not depend on the layout of JSON. Empty for JSON without any used field."""
    if path.suffix != ".json":
        return file_sha256(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return file_sha256(path)
    if isinstance(content, dict):
        unused = _UNUSED.get(path.name, set())
        content = {name: value for name, value in content.items() if name not in unused}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() if content else ""


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase, with_template: bool) -> dict[str, Any]:
    cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    return {**tokenizer_hashes(tokenizer, with_template), "cleans_up_spaces": cleans}
