"""The files that a shared adapter may contain: their names, and the largest allowed size of each file."""

from __future__ import annotations

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
PROVENANCE, RECIPE, RESULT = "petransfer.json", "recipe.yaml", "result.json"
EXAMPLES, MANIFEST = "examples.parquet", "manifest.json"

MIB = 2**20

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
