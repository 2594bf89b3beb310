"""Say what a path is that was named in place of a checkpoint, an adapter or data: the hub's cache, or a weight file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CACHE_OF_ONE, _INSIDE = "models--", ("snapshots", "blobs", "refs")
_CONFIGURATIONS = ("config.json", "adapter_config.json")
# What files with these endings are. petransfer reads none of them by itself.
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
    """Return that a folder is a part of the hub's cache, and which folder or hub id to name. '' for other folders.

    Args:
        folder: An existing folder: the cache, the folder `models--owner--name` of one model in it, or a folder
            `snapshots`, `blobs` or `refs` inside that folder.
    """
    place = folder.absolute()
    place = place.parent if place.name in _INSIDE else place
    if not place.name.startswith(_CACHE_OF_ONE):
        inner = next(iter(sorted(folder.glob(f"{_CACHE_OF_ONE}*--*"))), None)
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
    return place.name.removeprefix(_CACHE_OF_ONE).replace("--", "/", 1)


def weight_file_advice(file: Path) -> str:
    """Return that a file has weights or is a model of another program, and what to name. '' for other files."""
    suffix = file.suffix.lower()
    if form := _OTHER_PROGRAMS.get(suffix):
        return f"{form}; name the folder or hub id of the model that it was made from"
    if suffix in _WEIGHTS:
        return (
            "a file of weights alone; name a folder that also has config.json and the tokenizer, as save_pretrained "
            "writes it, or a hub id"
        )
    return ""
