"""The registered families of checkpoints, their arms, and the control arms. This module does not import torch."""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from petransfer.errors import UserError, shortened, unknown
from petransfer.models.trained_folders import advice_for_training
from petransfer.recipe.run_spec import CheckpointSpec, Reinit
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
