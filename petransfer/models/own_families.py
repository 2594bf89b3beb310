"""Families of the user's own checkpoints, as a recipe describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from petransfer.errors import UserError, unknown
from petransfer.models.registry import CONTROLS, Family, checkpoint_spec, is_embedded
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.recipe.schema import ArmPart, FamilyPart
from petransfer.user_paths import expanded

# The part of a checkpoint's name that stands for the seed of a run.
SEED = "{seed}"


def own_family(part: FamilyPart, seed: int = 0, only: Collection[str] | None = None) -> Family:
    """Return the family of a user's own checkpoints.

    Args:
        seed: Number that replaces `{seed}` in the names of checkpoints.
        only: Arms whose checkpoints are needed. The family has no other arms. None: all arms.

    Raises:
        UserError: A checkpoint does not exist, an arm has the name of a control arm, or `base` is not an arm.
    """
    taken = next((arm for arm in part.arms if arm in CONTROLS), None)
    if taken:
        raise UserError(
            f"family {part.name}: '{taken}' is a control arm that every family has; choose another name for your arm"
        )
    entries = {name: ArmPart(checkpoint=arm) if isinstance(arm, str) else arm for name, arm in part.arms.items()}
    specs = {
        arm: replace(
            _own(f"family {part.name}, arm {arm}", entry, seed),
            source_language=entry.source_language or part.source_language,
            target_language=entry.target_language or part.target_language,
        )
        for arm, entry in entries.items()
        if only is None or arm in only
    }
    base = base_arm(part)
    if base not in entries:
        raise unknown(f"base of family {part.name}", base, entries)
    prefixes = {arm: entry.prefix for arm, entry in entries.items() if entry.prefix is not None}
    return Family(part.name, base, part.prefix, specs, prefixes)


def arm_checkpoint(arm: str | ArmPart) -> str:
    """Return the hub id or folder of a family's arm, exactly as in the recipe."""
    return arm if isinstance(arm, str) else arm.checkpoint


def base_arm(part: FamilyPart) -> str:
    """Return the arm with the architecture of the control arms."""
    return part.base or ("english" if "english" in part.arms else next(iter(part.arms)))


def with_hashes(part: FamilyPart, seeds: Mapping[str, Sequence[int]]) -> FamilyPart:
    """Return the family with the sha256 of each arm's local folder added.

    Args:
        seeds: The seeds of each arm. A folder with `{seed}` in its name gets one sha256 for each seed of its arm.
    """
    arms: dict[str, str | ArmPart] = {}
    for name, given in part.arms.items():
        entry = ArmPart(checkpoint=given) if isinstance(given, str) else given
        specs = {seed: _own(name, entry, seed) for seed in (seeds[name] if SEED in entry.checkpoint else [0])}
        if all(spec.source is None for spec in specs.values()):
            arms[name] = given
            continue
        by_seed = {seed: spec.weights for seed, spec in specs.items()}
        known = entry.sha256 if isinstance(entry.sha256, dict) else {}
        arms[name] = entry.model_copy(update={"sha256": known | by_seed if SEED in entry.checkpoint else by_seed[0]})
    return part.model_copy(update={"arms": arms})


# Words for characters that are hard to write in a command.
_CHARACTERS = {"newline": "\n", "return": "\r", "tab": "\t", "braces": "{}"}


def added_characters(names: Sequence[str]) -> tuple[str, ...]:
    """Return the characters in `names`. A word such as `newline` stands for its character.

    Raises:
        UserError: A name is an unknown word.
    """
    words = [name.strip().lower() for name in names]
    for word in words:
        if len(word) > 1 and word.isascii() and word.isalpha() and word not in _CHARACTERS:
            raise unknown("name of an added token", word, [key for key in _CHARACTERS if key.isalpha()])
    found = (_CHARACTERS.get(word, name) for word, name in zip(words, names, strict=True))
    return tuple(dict.fromkeys(sign for signs in found for sign in signs))


def _own(where: str, entry: ArmPart, seed: int) -> CheckpointSpec:
    place = entry.checkpoint.replace(SEED, str(seed))
    recorded = entry.sha256.get(seed) if isinstance(entry.sha256, dict) else entry.sha256
    local = expanded(place)
    if recorded is not None and not local.exists():
        spec = CheckpointSpec(local.resolve().name, recorded, source=str(local.resolve()))
    else:
        spec = checkpoint_spec(place)
    if entry.revision is not None:
        if spec.source or is_embedded(spec.name) or "@" in entry.checkpoint:
            raise UserError(
                f"{where}: revision can only be set for a hub id without @revision, not for {entry.checkpoint}"
            )
        spec = replace(spec, weights=entry.revision)
    spec = replace(spec, added_tokens=added_characters(entry.added_tokens))
    if entry.tokenizer is None:
        return replace(spec, reinit=entry.reinit)
    if entry.reinit == "body":
        raise UserError(f"{where}: another tokenizer needs new embeddings; use reinit: embeddings or reinit: all")
    name, source = _tokenizer_place(entry.tokenizer)
    return replace(
        spec, reinit="all" if entry.reinit == "all" else "embeddings", tokenizer=name, tokenizer_source=source
    )


def _tokenizer_place(tokenizer: str) -> tuple[str, str | None]:
    """Return a tokenizer's name for a `CheckpointSpec`, and its folder if it is local."""
    local = expanded(tokenizer)
    if not is_embedded(tokenizer) and (tokenizer.startswith((".", "/", "~")) or local.is_dir()):
        files = [local / name for name in _TOKENIZER if (local / name).is_file()]
        if local / "tokenizer.json" not in files:
            files += [local / name for name in _WITHOUT_JSON if (local / name).is_file()]
        if not files:
            raise UserError(f"{local} holds no tokenizer; name a folder that a tokenizer's save_pretrained wrote")
        digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
        return f"{local.resolve().name}@{digest[:16]}", str(local.resolve())
    checkpoint_spec(tokenizer)  # refuses names that are not hub ids
    return tokenizer, None


_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "sentencepiece.bpe.model", "vocab.json")
# Further files of a tokenizer without tokenizer.json, which has the content of all these files.
_WITHOUT_JSON = ("tokenizer.model", "vocab.txt", "merges.txt", "source.spm", "target.spm", "tekken.json")
