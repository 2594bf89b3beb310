"""Hashes that identify a base model and its tokenizer."""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.models.registry import embedded_folder, file_sha256, is_embedded
from petransfer.recipe.run_spec import CheckpointSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHOLE = ("model.safetensors", "pytorch_model.bin")


def weight_hashes(checkpoint: CheckpointSpec, commit: str | None) -> dict[str, str]:
    """Return the sha256 of each weight file of a checkpoint, by file name.

    Args:
        commit: Commit of a hub checkpoint. None: the revision in `checkpoint`.
    """
    return {name: file_sha256(path) for name, path in weight_files(checkpoint, commit).items() if path}


def weight_files(checkpoint: CheckpointSpec, commit: str | None) -> dict[str, Path | None]:
    """Return the path of each weight file by name. None for a missing file."""
    for name in _WHOLE:
        whole = _file(checkpoint, commit, name)
        if whole:
            return {name: whole}
        index = _file(checkpoint, commit, f"{name}.index.json")
        if index:
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return {part: _file(checkpoint, commit, part) for part in parts}
    return {}


# Tensors that old files have and that transformers computes itself, so that it does not save them again.
_COMPUTED = re.compile(r"(inv_freq|attn\.bias|attn\.masked_bias|attention\.bias|position_ids)$")


def tensors_sha256(checkpoint: CheckpointSpec, commit: str | None) -> str | None:
    """Return a sha256 over the values of a checkpoint's tensors. None for files in another format than safetensors.

    Names of tensors and their division among files do not matter. A tensor that is stored twice counts once.
    """
    files = list(weight_files(checkpoint, commit).values())
    found: set[str] = set()
    for path in files:
        if path is None or path.suffix != ".safetensors":
            return None
        found |= _tensor_hashes(path, path.stat().st_mtime_ns)
    return _sha256("".join(sorted(found))) if found else None


@functools.cache
def _tensor_hashes(path: Path, modified_ns: int) -> frozenset[str]:
    """Return a hash of the shape and the values of each tensor in a safetensors file."""
    found = set()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__" and not _COMPUTED.search(name):
                first, end = entry["data_offsets"]
                digest = hashlib.sha256(json.dumps(entry["shape"]).encode())
                with view[start + first : start + end] as values:
                    digest.update(values)
                found.add(digest.hexdigest())
    return frozenset(found)


def is_on_hub(checkpoint: CheckpointSpec) -> bool:
    """Return whether a checkpoint is loaded from the hub."""
    return not (is_embedded(checkpoint.name) or checkpoint.source)


def _file(checkpoint: CheckpointSpec, commit: str | None, name: str) -> Path | None:
    if not is_on_hub(checkpoint):
        folder = Path(checkpoint.source) if checkpoint.source else embedded_folder(checkpoint.name)
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(checkpoint.name, name, revision=commit or checkpoint.weights)
    return Path(found) if isinstance(found, str) else None


def tokenizer_hashes(tokenizer: PreTrainedTokenizerBase, with_template: bool) -> dict[str, str | None]:
    """Return the entries of petransfer.json that identify a tokenizer. A missing part has the value None.

    Args:
        with_template: Whether to include the chat template.
    """
    processors = [one for one in vars(tokenizer).values() if hasattr(one, "serialized_model_proto")]
    digests = sorted({hashlib.sha256(one.serialized_model_proto()).hexdigest() for one in processors})
    template = tokenizer.chat_template
    found = {
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "sentencepiece_sha256": _sha256("".join(digests)) if digests else None,
    }
    if with_template:
        found["chat_template_sha256"] = _sha256(json.dumps(template, sort_keys=True)) if template else None
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sha256 over everything that determines the tokenization of a text."""
    content: dict[str, Any] = {
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "ids": sorted(tokenizer.all_special_ids),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content |= {"class": type(tokenizer).__name__, "pieces": tokenizer.get_vocab()}
    else:
        # an earlier call can have changed the settings for padding and truncation
        content["rules"] = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
    return _sha256(json.dumps(content, sort_keys=True))


# Letters of several scripts, capitals, digits, punctuation and white space. Each rule of a tokenizer changes some ids.
_PROBE = (
    "The Walk, walked twice: größer ß É 12 345.67 (a_b-c/d) {x} <y>\t\n don't  İ ﬁ Ωmega мир 世界 日本 नमस्ते سلام 👍"
)


def token_ids_record(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the entry of petransfer.json with which changed token ids are recognised (see `has_other_token_ids`)."""
    tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    return {"tokens": tokens, "sha256": _token_ids_sha256(tokenizer, tokens)}


def has_other_token_ids(tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any]) -> bool:
    """Return whether texts have other token ids than with the recorded tokenizer. Tokens that were added do not count.

    Args:
        record: The record that `token_ids_record` returned for the tokenizer used in training.
    """
    return bool(_token_ids_sha256(tokenizer, record["tokens"]) != record["sha256"])


def _token_ids_sha256(tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """Return a sha256 of the first `tokens` tokens with their ids, the ids of a text, and the ids of special tokens."""
    content = {
        "vocabulary": sorted((at, token) for token, at in tokenizer.get_vocab().items() if at < tokens),
        "text": tokenizer(_PROBE, add_special_tokens=False)["input_ids"],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id],
    }
    return _sha256(json.dumps(content))
