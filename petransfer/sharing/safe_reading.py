"""Read JSON, YAML and safetensors headers from an unknown source, without executing code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from petransfer.errors import UserError, reason_of
from petransfer.recipe.yaml_text import parse_yaml
from petransfer.unreadable_files import refuse_unreadable

# The largest number of characters of a YAML text: cards and recipes are short, and reading YAML is slow.
LONGEST = 200_000

# The dtype (such as `F32`) and the shape of each tensor, by the tensor's name.
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: the file is not a JSON object, has a key twice, or contains NaN or Infinity.
    """
    refuse_unreadable(path, path.name)
    try:
        content = json.loads(
            path.read_bytes().decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite
        )
    except RecursionError:
        raise UserError(f"{path.name} is nested too deeply; get the adapter again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} is damaged ({reason_of(error, 120)}); get the adapter again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds no object; get the adapter again")
    return content


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML text. `name` is the name of the text in messages.

    Raises:
        UserError: the text is not a mapping, is too long, or is refused by `parse_yaml`.
    """
    if len(text) > LONGEST:
        raise UserError(f"{name} has {len(text):,} characters; at most {LONGEST:,} are read")
    try:
        content = parse_yaml(text)
    except UserError as error:
        raise UserError(f"{name} {error}; get the adapter again") from None
    if not isinstance(content, dict):
        raise UserError(f"{name} holds no mapping; get the adapter again")
    return content


def card_data(text: str) -> dict[str, Any]:
    """Return the metadata at the head of a card. Empty without metadata."""
    if not text.startswith("---\n"):
        return {}
    head, mark, _ = text[4:].partition("\n---")
    return read_yaml(head, "the head of README.md") if mark else {}


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        UserError: the file is not UTF-8.
    """
    refuse_unreadable(path, path.name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path.name} cannot be read as UTF-8 ({reason_of(error, 120)}); get the adapter again"
        ) from None


def read_header(path: Path) -> Tensors:
    """Return the dtype and shape of each tensor in a safetensors file, by name, without reading values.

    Raises:
        UserError: the file is not a safetensors file, is incomplete, or has long metadata.
    """
    from safetensors import SafetensorError, safe_open

    refuse_unreadable(path, path.name)
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path.name} is not a safetensors file or is damaged ({reason_of(error, 120)}); get it again"
        ) from None
    if sum(map(len, (*metadata.keys(), *metadata.values()))) > 4096:
        raise UserError(f"{path.name} has more than 4,096 characters of metadata; an adapter needs none")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not valid JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large for a float")
    return number
