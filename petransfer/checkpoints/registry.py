"""The families of checkpoints and their arms, and the control arms that every family has. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from petransfer.errors import UserError, unknown
from petransfer.recipe.spec import CheckpointSpec, Reinit

NANO = Path(str(resources.files("petransfer.checkpoints"))) / "nano"

Trained = Literal["method", "all"]


@dataclass(frozen=True)
class Control:
    """A control arm: what of `arm` (None: the family's base) is drawn anew, and whether all weights are trained."""

    reinit: Reinit
    arm: str | None = None
    trained: Trained = "method"


CONTROLS: dict[str, Control] = {
    "scratch": Control("all", trained="all"),
    "random": Control("all"),
    "english-newemb": Control("embeddings", arm="english"),
}


@dataclass(frozen=True)
class Arm:
    """One pretraining condition of a family, ready to be put in a run's spec."""

    name: str
    checkpoint: CheckpointSpec
    trained: Trained = "method"


@dataclass(frozen=True)
class Family:
    """Checkpoints of one architecture and size. `prefix` is put before every input."""

    name: str
    base: str
    prefix: str
    arms: dict[str, CheckpointSpec]

    @property
    def arm_names(self) -> tuple[str, ...]:
        """The pretrained arms, then the controls that this family can have."""
        controls = [name for name, control in CONTROLS.items() if (control.arm or self.base) in self.arms]
        return (*self.arms, *controls)

    def arm(self, name: str) -> Arm:
        """The arm called `name`.

        Raises:
            UserError: the family has no such arm.
        """
        if name in self.arms:
            return Arm(name, self.arms[name])
        if name not in self.arm_names:
            raise unknown(f"arm of family {self.name}", name, self.arm_names)
        control = CONTROLS[name]
        checkpoint = replace(self.arms[control.arm or self.base], reinit=control.reinit)
        return Arm(name, checkpoint, control.trained)


@functools.cache
def _registry() -> dict[str, Any]:
    text = (resources.files("petransfer.checkpoints") / "registry.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def family_names() -> tuple[str, ...]:
    """The registered families."""
    return tuple(_registry())


def registered_family(name: str) -> Family:
    """The family called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in _registry():
        raise unknown("family", name, _registry())
    entry = _registry()[name]
    arms = {arm: checkpoint_spec(content["checkpoint"]) for arm, content in entry["arms"].items()}
    return Family(name, entry["base"], entry["prefix"], arms)


def own_family(name: str, arms: dict[str, str], prefix: str, folder: Path) -> Family:
    """A family of the user's own checkpoints; relative folders are looked for from `folder`."""
    specs = {arm: checkpoint_spec(checkpoint, folder) for arm, checkpoint in arms.items()}
    base = "english" if "english" in specs else next(iter(specs))
    return Family(name, base, prefix, specs)


def checkpoint_spec(checkpoint: str, folder: Path = Path()) -> CheckpointSpec:
    """What a name stands for: `nano/<arm>`, a local folder, or a hub id, with `@revision` where one is wanted.

    Raises:
        UserError: the folder or the embedded arm does not exist, or the name is no hub id.
    """
    if checkpoint.startswith("nano/"):
        return CheckpointSpec(checkpoint, _embedded_sha256(checkpoint))
    local = folder / Path(checkpoint).expanduser()
    if checkpoint.startswith((".", "/", "~")) or local.is_dir():
        if not (local / "config.json").is_file():
            raise UserError(
                f"{local} is no checkpoint: it has no config.json; name a folder that save_pretrained wrote"
            )
        return CheckpointSpec(local.resolve().name, _folder_sha256(local), source=str(local.resolve()))
    name, _, revision = checkpoint.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"'{checkpoint}' is neither a folder nor a hub id (owner/name or owner/name@revision)")
    return CheckpointSpec(name, revision or "main")


def embedded_arms() -> dict[str, dict[str, Any]]:
    """The cards of the embedded checkpoints, by arm."""
    cards = sorted(NANO.glob("*/pretraining.json"))
    return {card.parent.name: json.loads(card.read_text(encoding="utf-8")) for card in cards}


def embedded_folder(name: str) -> Path:
    """The folder of `nano/<arm>`.

    Raises:
        UserError: no such arm is embedded.
    """
    arm = name.removeprefix("nano/")
    if arm not in embedded_arms():
        raise unknown("embedded checkpoint", name, [f"nano/{known}" for known in embedded_arms()])
    return NANO / arm


@functools.cache
def _embedded_sha256(name: str) -> str:
    digest = hashlib.sha256((NANO / "tokenizer" / "tokenizer.json").read_bytes())
    digest.update((embedded_folder(name) / "model.safetensors").read_bytes())
    return digest.hexdigest()


def _folder_sha256(folder: Path) -> str:
    """Over the configuration, the tokenizer and the weights; names and contents count, dates do not."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".model", ".txt"} and path.is_file():
            stat = path.stat()
            digest.update(path.name.encode() + _file_sha256(path, stat.st_mtime_ns, stat.st_size))
    return digest.hexdigest()


@functools.cache
def _file_sha256(path: Path, modified_ns: int, size: int) -> bytes:
    """Read once a process unless the file changes: weights are large."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
