"""The registered families of checkpoints, their arms, and the control arms. This module does not import torch."""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from petransfer.errors import UserError, shortened, unknown
from petransfer.models.trained_folders import advice_for_training
from petransfer.recipe.run_spec import CheckpointSpec, Reinit
from petransfer.recipe.schema import ArmPart, FamilyPart
from petransfer.recipe.values import Strict
from petransfer.recipe.yaml_text import LOADER
from petransfer.user_paths import expanded, is_hub_name, refuse_address
from petransfer.wrong_paths import cache_advice, weight_file_advice

NANO = Path(str(resources.files("petransfer.models"))) / "nano"

# Embedded checkpoints, which are installed with petransfer, have names of the form `nano/<arm>`.
_EMBEDDED = "nano/"


def is_embedded(name: str) -> bool:
    """Return whether a checkpoint is shipped with petransfer, by its name, such as `nano/english`."""
    return name.startswith(_EMBEDDED)


def embedded_arm(name: str) -> str:
    """Return the arm of a shipped checkpoint: `english` for `nano/english`. Other names are returned unchanged."""
    return name.removeprefix(_EMBEDDED)


Trained = Literal["method", "all"]


@dataclass(frozen=True)
class Control:
    """A control arm, which is made from another arm.

    Args:
        reinit: The random weights: `embeddings`, `body` or `all`.
        arm: The arm that the control arm is made from. None: the family's base arm.
        trained: `all`: all weights are trained. `method`: the training method determines the trained weights.
    """

    reinit: Reinit
    arm: str | None = None
    trained: Trained = "method"


CONTROLS: dict[str, Control] = {
    "scratch": Control("all", trained="all"),
    "random": Control("all"),
    "english-newemb": Control("embeddings", arm="english"),
}


class ArmEntry(Strict):
    """The entry of an arm in the registry.

    Args:
        checkpoint: Hub id, with or without `@revision`, or name of a shipped checkpoint.
        architecture: Name of the checkpoint's configuration in the registry.
        parameters: Number of parameters of this configuration. Tied tensors are counted once.
        languages: Languages of the pretraining text.
        licence: Licence of the checkpoint.
        initialised_from: Start of pretraining: `random` or the name of another checkpoint.
        contamination: Other languages or domains in the pretraining text.
        verified: Whether the configuration was compared with the hub's configuration.
        tokenizer: Checkpoint of another tokenizer, for an arm whose tokenizer cannot represent the words of the
            benchmarks. The embeddings are then random. None: the arm's tokenizer.
        prefix: Text before every input, if it differs from the family's prefix. None: the family's prefix.
        note: Anything else that a user should know.
    """

    checkpoint: str
    architecture: str
    parameters: Annotated[int, Field(gt=0)]
    languages: list[str]
    licence: str
    initialised_from: str
    contamination: str
    verified: bool
    tokenizer: str | None = None
    prefix: str | None = None
    note: str = ""


class FamilyEntry(Strict):
    """The entry of a family in the registry.

    Args:
        base: The arm whose architecture and tokenizer the control arms use.
        prefix: Text before every input.
        arms: Entries of the arms, by name.
    """

    base: str
    prefix: str
    arms: Annotated[dict[str, ArmEntry], Field(min_length=1)]


class RegistryFile(Strict):
    """The content of registry.yaml.

    Args:
        architectures: For each architecture, `model_type` and the configuration fields that determine shapes.
        families: Entries of the families, by name.
    """

    architectures: dict[str, dict[str, Any]]
    families: dict[str, FamilyEntry]

    @model_validator(mode="after")
    def _names_are_known(self) -> RegistryFile:
        for name, family in self.families.items():
            if family.base not in family.arms:
                raise ValueError(f"family {name}: its base {family.base} is not one of its arms")
            for arm, entry in family.arms.items():
                if entry.architecture not in self.architectures:
                    raise ValueError(f"family {name}, arm {arm}: no architecture {entry.architecture}")
        return self


@dataclass(frozen=True)
class Arm:
    """One arm of a family, with the values for a `RunSpec`.

    Args:
        name: Name of the arm.
        checkpoint: The checkpoint.
        trained: `all`: all weights are trained. `method`: the training method determines the trained weights.
        prefix: Text before every input.
    """

    name: str
    checkpoint: CheckpointSpec
    trained: Trained = "method"
    prefix: str = ""


@dataclass(frozen=True)
class Family:
    """A family: checkpoints of one architecture and size, one per arm.

    Args:
        name: Name of the family.
        base: The arm whose architecture and tokenizer the control arms use.
        prefix: Text before every input.
        arms: Checkpoint of each pretrained arm.
        prefixes: Prefix of each arm whose prefix differs from the family's prefix.
    """

    name: str
    base: str
    prefix: str
    arms: dict[str, CheckpointSpec]
    prefixes: dict[str, str] = field(default_factory=dict)

    @property
    def arm_names(self) -> tuple[str, ...]:
        """The pretrained arms, then the control arms that this family can have."""
        controls = [name for name, control in CONTROLS.items() if (control.arm or self.base) in self.arms]
        return (*self.arms, *controls)

    def arm(self, name: str) -> Arm:
        """Return the arm called `name`: a pretrained arm, or a control without pretraining."""
        if name in self.arms:
            return Arm(name, self.arms[name], prefix=self.prefixes.get(name, self.prefix))
        if name not in self.arm_names:
            if "/" in name:
                raise UserError(f"'{shortened(name, 80)}' is no arm of the family {self.name}; {_own_form(name)}")
            raise unknown(f"arm of family {self.name}", name, self.arm_names)
        control = CONTROLS[name]
        like = self.arm(control.arm or self.base)
        return Arm(name, replace(like.checkpoint, reinit=control.reinit), control.trained, like.prefix)


def _own_form(place: str) -> str:
    """Return how a recipe names a checkpoint of the user."""
    return f"for checkpoints of your own, write `family: {{name: mine, arms: {{one: {place:.80}}}}}` and `arms: [one]`"


@functools.cache
def registry() -> RegistryFile:
    """Return the validated content of registry.yaml."""
    text = (resources.files("petransfer.models") / "registry.yaml").read_text(encoding="utf-8")
    return RegistryFile.model_validate(yaml.load(text, LOADER))


def registered_arm(checkpoint: str) -> ArmEntry | None:
    """Return the first arm in the registry with this checkpoint, or None. The name has no revision."""
    arms = (entry for family in registry().families.values() for entry in family.arms.values())
    return next((entry for entry in arms if entry.checkpoint.partition("@")[0] == checkpoint), None)


def family_names() -> tuple[str, ...]:
    return tuple(registry().families)


def registered_family(name: str) -> Family:
    """Return the registered family called `name`."""
    if name not in registry().families:
        if "/" in name:
            raise UserError(f"'{shortened(name, 80)}' is no family of checkpoints; {_own_form(name)}")
        raise unknown("family", name, registry().families)
    entry = registry().families[name]
    arms = {arm: _registered(content) for arm, content in entry.arms.items()}
    prefixes = {arm: content.prefix for arm, content in entry.arms.items() if content.prefix is not None}
    return Family(name, entry.base, entry.prefix, arms, prefixes)


def _registered(entry: ArmEntry) -> CheckpointSpec:
    spec = checkpoint_spec(entry.checkpoint)
    return replace(spec, tokenizer=entry.tokenizer, reinit="embeddings") if entry.tokenizer else spec


SEED = "{seed}"


def own_family(part: FamilyPart, seed: int = 0) -> Family:
    """Return the family of a user's own checkpoints.

    Args:
        seed: Number that replaces `{seed}` in the names of checkpoints.

    Raises:
        UserError: A checkpoint does not exist, an arm has the name of a control arm, or `base` is not an arm.
    """
    taken = next((arm for arm in part.arms if arm in CONTROLS), None)
    if taken:
        raise UserError(
            f"family {part.name}: '{taken}' is a control arm that every family has; choose another name for your arm"
        )
    entries = {arm: ArmPart(checkpoint=arm_) if isinstance(arm_, str) else arm_ for arm, arm_ in part.arms.items()}
    specs = {
        arm: replace(
            _own(f"family {part.name}, arm {arm}", entry, seed),
            source_language=entry.source_language or part.source_language,
            target_language=entry.target_language or part.target_language,
        )
        for arm, entry in entries.items()
    }
    base = part.base or ("english" if "english" in specs else next(iter(specs)))
    if base not in specs:
        raise unknown(f"base of family {part.name}", base, specs)
    prefixes = {arm: entry.prefix for arm, entry in entries.items() if entry.prefix is not None}
    return Family(part.name, base, part.prefix, specs, prefixes)


def arm_checkpoint(arm: str | ArmPart) -> str:
    """Return the hub id or folder of a family's arm, exactly as in the recipe."""
    return arm if isinstance(arm, str) else arm.checkpoint


def with_hashes(part: FamilyPart, seeds: Sequence[int]) -> FamilyPart:
    """Return the family with the sha256 of each arm's local folder added.

    A folder with `{seed}` in its name gets one sha256 for each of `seeds`.
    """
    arms: dict[str, str | ArmPart] = {}
    for name, given in part.arms.items():
        entry = ArmPart(checkpoint=given) if isinstance(given, str) else given
        specs = {seed: _own(name, entry, seed) for seed in (seeds if SEED in entry.checkpoint else [0])}
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


def checkpoint_spec(checkpoint: str) -> CheckpointSpec:
    """Return the spec of a checkpoint: `nano/<arm>`, a local folder, or a hub id with or without `@revision`.

    Raises:
        UserError: The folder or the shipped checkpoint does not exist, or the name is not a hub id.
    """
    if is_embedded(checkpoint):
        return CheckpointSpec(checkpoint, _embedded_sha256(checkpoint))
    local = expanded(checkpoint)
    if local.is_file():
        raise _file_in_place_of_folder(local, checkpoint)
    if checkpoint.startswith((".", "/", "~")) or local.is_dir():
        if not local.exists():
            raise UserError(f"there is no folder {local}; put the checkpoint back, or correct its name")
        if not (local / "config.json").is_file():
            if advice := advice_for_training(local, checkpoint) or cache_advice(local):
                raise UserError(f"{checkpoint} is {advice}")
            raise UserError(
                f"{local} is no checkpoint: it has no config.json; name a folder that save_pretrained wrote"
            )
        return CheckpointSpec(local.resolve().name, _folder_sha256(local), source=str(local.resolve()))
    refuse_address(checkpoint, "the checkpoint")
    name, _, revision = checkpoint.partition("@")
    if not is_hub_name(name):
        raise UserError(f"'{checkpoint}' is neither a folder nor a hub id (owner/name or owner/name@revision)")
    return CheckpointSpec(name, revision or "main")


def _file_in_place_of_folder(file: Path, name: str) -> UserError:
    """Return the error for a file that was given in place of a checkpoint's folder. `name`: as the user wrote it."""
    if advice := advice_for_training(file, name):
        return UserError(f"{name} is {advice}")
    if (file.parent / "config.json").is_file():
        return UserError(f"{file} is one file of a checkpoint; name the folder {file.parent}")
    if (file.parent / "adapter_config.json").is_file():
        return UserError(f"{name} is one file of {advice_for_training(file.parent, str(file.parent))}")
    if advice := weight_file_advice(file):
        return UserError(f"{name} is {advice}")
    return UserError(
        f"{file} is a file, and a checkpoint is a folder or a hub id; if it holds your rows, give it after the model: "
        f"`petransfer train MODEL {shlex.quote(str(file))}`"
    )


def embedded_arms() -> dict[str, dict[str, Any]]:
    """Return the cards (`pretraining.json`) of the checkpoints shipped with petransfer, by arm."""
    cards = sorted(NANO.glob("*/pretraining.json"))
    return {card.parent.name: json.loads(card.read_text(encoding="utf-8")) for card in cards}


def embedded_folder(name: str) -> Path:
    """Return the folder of a shipped checkpoint, `nano/<arm>`."""
    arm = embedded_arm(name)
    if arm not in embedded_arms():
        raise unknown("checkpoint", name, [f"nano/{known}" for known in embedded_arms()])
    return NANO / arm


@functools.cache
def _embedded_sha256(name: str) -> str:
    digest = hashlib.sha256()
    for path in (NANO / "tokenizer" / "tokenizer.json", embedded_folder(name) / "model.safetensors"):
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise UserError(f"{name}: cannot read {path} ({error.strerror}); install petransfer again") from None
    return digest.hexdigest()


# The suffixes of the files that determine a checkpoint's hash. Pickled weights (.bin) are added only if there are no
# safetensors.
_SUFFIXES = {".json", ".safetensors", ".model", ".txt", ".spm", ".bpe", ".tiktoken", ".jinja"}


def _folder_sha256(folder: Path) -> str:
    """Return the sha256 over the names and contents of a checkpoint's configuration, tokenizer and weight files."""
    digest = hashlib.sha256()
    for path in hashed_files(folder):
        digest.update(path.name.encode() + bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def hashed_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's folder that determine its hash, sorted by path."""
    files = [path for path in folder.iterdir() if path.is_file()]
    templates = (folder / "additional_chat_templates").glob("*.jinja")
    suffixes = _SUFFIXES if any(path.suffix == ".safetensors" for path in files) else {*_SUFFIXES, ".bin"}
    return sorted([*(path for path in files if path.suffix in suffixes), *templates])


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, from a cache if the file has not changed."""
    stat = path.stat()
    return _file_sha256(path, stat.st_mtime_ns, stat.st_size).hex()


@functools.cache
def _file_sha256(path: Path, modified_ns: int, size: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
