"""Explain paths that are not a checkpoint, an adapter or data: a part of the hub's cache, or a file of weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MODEL_PREFIX, _INSIDE = "models--", ("snapshots", "blobs", "refs")
_CONFIGURATIONS = ("config.json", "adapter_config.json")
# Kinds of files by suffix, for messages. petransfer cannot load a model from any of them.
_OTHER_PROGRAMS = {
    ".gguf": "a GGUF file, which llama.cpp runs",
    ".onnx": "an ONNX file",
    ".h5": "a weight file of TensorFlow",
    ".tflite": "a TensorFlow Lite file",
    ".msgpack": "a weight file of Flax",
    ".mlmodel": "a Core ML file",
}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")


def cache_advice(folder: Path) -> str:
    """Return advice for a folder of the hub's cache: which folder or hub id to name instead. '' for other folders.

    Args:
        folder: An existing folder: the cache, the folder `models--owner--name` of one model in it, or a folder
            `snapshots`, `blobs` or `refs` inside that folder.
    """
    place = folder.absolute()
    place = place.parent if place.name in _INSIDE else place
    if not place.name.startswith(_MODEL_PREFIX):
        inner = next(iter(sorted(folder.glob(f"{_MODEL_PREFIX}*--*"))), None)
        return f"the hub's cache; give the hub id of a model, such as {_hub_id(inner)}" if inner else ""
    what = f"the folder of {_hub_id(place)} in the hub's cache"
    found = next(_complete_copies(place), None)
    if found is None:
        return f"{what}, and has no complete copy of it; download it again with `hf download {_hub_id(place)}`"
    return f"{what}; name the folder of the model's files in it, {found}"


def _complete_copies(place: Path) -> Iterator[Path]:
    """Yield the folders with a configuration in the cache of one model. The copy of the branch main is the first."""
    main = place / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    copies = sorted(place.glob("snapshots/*"), key=lambda copy: copy.name != commit)
    yield from (copy for copy in copies if any((copy / name).is_file() for name in _CONFIGURATIONS))


def _hub_id(place: Path) -> str:
    return place.name.removeprefix(_MODEL_PREFIX).replace("--", "/", 1)


def weight_file_advice(file: Path) -> str:
    """Return advice for a file of weights or a model file of another program: what to name instead. '' for others."""
    suffix = file.suffix.lower()
    if form := _OTHER_PROGRAMS.get(suffix):
        return f"{form}; name the folder or hub id of the model that it was made from"
    if suffix in _WEIGHTS:
        return (
            "only a file of weights; name a folder that also has config.json and the tokenizer, as save_pretrained "
            "writes it, or a hub id"
        )
    return ""
