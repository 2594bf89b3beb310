"""The files that a shared adapter may contain: their names, and the largest allowed size of each file."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path

from petransfer.models.registry import file_sha256

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
PROVENANCE, RECIPE, RESULT = "petransfer.json", "recipe.yaml", "result.json"
EXAMPLES, MANIFEST = "examples.parquet", "manifest.json"

# The weights of adapters of older versions of peft.
_OLD_WEIGHTS = "adapter_model.bin"

MIB = 2**20
_TEXTS = (".json", ".yaml", ".md")

# Every file that an adapter may contain, with the largest allowed size in bytes. Any other file is refused.
LIMITS: dict[str, int] = {
    MANIFEST: MIB,
    CONFIG: 16 * MIB,
    WEIGHTS: 16 * 1024 * MIB,
    CARD: 4 * MIB,
    PROVENANCE: MIB,
    RECIPE: MIB,
    RESULT: 4 * MIB,
    EXAMPLES: 1024 * MIB,
}

# The files of a tokenizer that other programs save beside an adapter, with the largest size in bytes that is read. A
# bundle contains none of them.
TOKENIZER_FILES: dict[str, int] = dict.fromkeys(
    (
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
        "sentencepiece.bpe.model", "source.spm", "target.spm", "tekken.json",
    ),
    128 * MIB,
)  # fmt: skip


def with_unix_line_ends(path: Path) -> bytes:
    """Return the content of a file. In a text file, each CRLF is replaced by LF.

    petransfer writes LF. With the setting autocrlf, git writes CRLF.
    """
    content = path.read_bytes()
    return content.replace(b"\r\n", b"\n") if path.suffix in _TEXTS else content


def has_unix_line_ends(path: Path) -> bool:
    """Return whether a file has no CRLF, or is not a text file."""
    return path.suffix not in _TEXTS or b"\r\n" not in path.read_bytes()


def has_sha256(path: Path, expected: str) -> bool:
    """Return whether a file has this sha256. A text file can have CRLF in place of LF."""
    if file_sha256(path) == expected:
        return True
    return path.suffix in _TEXTS and hashlib.sha256(with_unix_line_ends(path)).hexdigest() == expected


def without_weights(names: Iterable[str], folder: Path | None) -> str:
    """Return why files without adapter_model.safetensors are refused, and what to do.

    Args:
        names: the names of the files.
        folder: folder with the files. None if they are on the hub.
    """
    pickles = sorted(name for name in names if name.endswith(".bin"))
    if not pickles:
        return f"it has no {WEIGHTS}; adapters are safetensors only"
    what = f"it has only {pickles[0]}, a pickle, which runs code when it is opened; adapters are safetensors only"
    if _OLD_WEIGHTS not in pickles:
        return what
    if folder is None:
        return f"{what}; download it with `hf download`, and name the folder to learn how to convert it"
    old, new = folder / _OLD_WEIGHTS, folder / WEIGHTS
    code = (
        "import torch, safetensors.torch as s; "
        f"t = torch.load({str(old)!r}, map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.clone() for k, v in t.items()}}, {str(new)!r})"
    )
    return f"{what}; this converts it and runs no code of the file: python -c {shlex.quote(code)}"


def wrong_name(name: str) -> str | None:
    """Return why an adapter must not contain a file of this name. None for an allowed name."""
    if name in LIMITS:
        return None
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "is an absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return "leads out of the folder"
    if name.lower().endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz")):
        return "may be a pickle, which runs code when it is opened; adapters are safetensors only"
    if name.lower().endswith(".py"):
        return "is code; adapters contain none"
    return (
        "is no file of a bundle; if another program packed it, pack with `petransfer adapter pack`, or unpack it and "
        "name the folder"
    )
