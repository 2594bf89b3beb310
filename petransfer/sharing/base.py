"""Find the base model of an adapter, and refuse a base that differs from the one that the adapter was trained on."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from petransfer.errors import UserError
from petransfer.methods import weights_bits
from petransfer.models.configuration_record import configuration_record, differing_fields
from petransfer.models.hashes import is_on_hub, tokenizer_sha256, weight_hashes
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec, is_embedded
from petransfer.recipe.run_spec import Bits, CheckpointSpec, RunSpec
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.safe_reading import read_json

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Where:
    """The user's settings for where an adapter's base and data are, and on which device the base is loaded.

    checkpoint: the base model, if it cannot be found by the name that the adapter's files give.
    revision: a commit or branch of the base on the hub, in place of the revision that the adapter's files give.
    data_dir: a folder with data files, of a benchmark or the user's own.
    device: None selects the GPU if there is one.
    any_base: accept a base whose weights or configuration differ from those that were used in training.
    """

    checkpoint: str | None = None
    revision: str | None = None
    data_dir: Path | None = None
    device: str | None = None
    any_base: bool = False


@dataclass(frozen=True)
class Base:
    """The base model of an adapter, and how to load it.

    bits: bits of the loaded weights.
    seed: the seed of the base's random weights, if some are drawn at random.
    keep_wide: endings of layer names. Layers whose names have one of these endings are not quantised.
    commit: the hub commit used in training; None if the base was not on the hub or the commit was not recorded.
    trained_on: the record of the base in petransfer.json; empty if there is no such file.
    named_by_adapter: whether only adapter_config.json names the base, that is, neither petransfer.json nor the user.
    """

    checkpoint: CheckpointSpec
    bits: Bits
    seed: int
    keep_wide: tuple[str, ...]
    commit: str | None
    trained_on: dict[str, Any] = field(default_factory=dict)
    named_by_adapter: bool = False

    def load(self, device: torch.device | str | None = None) -> Loaded:
        """Load the base on `device`; None selects the GPU if there is one.

        Raises:
            UserError: the base cannot be loaded.
        """
        device = device or default_device()
        try:
            return load_checkpoint(self.checkpoint, self.bits, seed=self.seed, device=device, keep_wide=self.keep_wide)
        except UserError as error:
            if not self.named_by_adapter:
                raise
            advice = "if the base that the adapter names lies elsewhere, give --checkpoint"
            raise UserError(f"{error}; {advice}") from error


def default_device() -> str:
    """Return `cuda` if there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def base_of(bundle: Bundle, checkpoint: str | None, revision: str | None, bits: Bits | None = None) -> Base:
    """Return the base that a bundle names, at the commit used in training.

    Args:
        checkpoint: the base's hub id or folder, in place of the name in the bundle.
        revision: the base's revision on the hub, in place of the commit used in training.
        bits: the base's number of bits, in place of the number used in training.

    Raises:
        UserError: the base cannot be found without `checkpoint`, or `revision` is given for a base that is not on the
            hub.
    """
    spec = bundle.spec
    found = _placed(bundle, checkpoint)
    recorded = dict((bundle.provenance or {}).get("base") or {})
    stated = recorded.get("commit") or bundle.config.get("revision")
    commit = stated if isinstance(stated, str) and re.fullmatch("[0-9a-f]{40}", stated) else None
    if revision is not None and not is_on_hub(found):
        raise UserError(f"--revision {revision}: {found.name} is not on the hub; leave --revision out")
    if is_on_hub(found) and revision:
        found = replace(found, weights=revision)
    elif is_on_hub(found) and stated and found.name == _name_of(bundle) and "@" not in (checkpoint or ""):
        found = replace(found, weights=str(stated))
    own: Bits = weights_bits(spec.method) if spec else (16 if torch.cuda.is_available() else 32)
    wide = spec.method.keep_wide if spec else ()
    return Base(found, bits or own, spec.seed if spec else 0, wide, commit, recorded, spec is None and not checkpoint)


def _name_of(bundle: Bundle) -> str:
    return bundle.spec.checkpoint.name if bundle.spec else str(bundle.config.get("base_model_name_or_path"))


def _placed(bundle: Bundle, checkpoint: str | None) -> CheckpointSpec:
    """Return the base's checkpoint: `checkpoint` if given, else the checkpoint that the run or the bundle names.

    If spec.json in the run's folder is on this machine, it is preferred to the bundle: only spec.json has the path of a
    base that is a local folder.

    Raises:
        UserError: the bundle names no base, or a base that cannot be found by its name.
    """
    if bundle.spec is None:
        return checkpoint_spec(checkpoint) if checkpoint is not None else _named_by_config(bundle)
    made = bundle.spec.checkpoint
    kept = bundle.here / "spec.json" if bundle.here else None
    here = RunSpec.from_dict(read_json(kept)).checkpoint if kept else None
    if checkpoint is not None:
        return as_trained_from(checkpoint_spec(checkpoint), here or made)
    if here:
        return here
    if not is_embedded(made.name) and len(made.weights) == 64:
        raise UserError(
            f"the base of {bundle.label} was a local folder called {made.name}, and adapters do not contain their "
            "base; name its folder with --checkpoint"
        )
    found = as_trained_from(checkpoint_spec(made.name), made)
    if is_embedded(made.name) and made.weights not in ("main", found.weights):
        raise UserError(
            f"{bundle.label} was trained on a version of {made.name} with other weights than the one in this version "
            "of petransfer; install the version that trained it"
        )
    return found if is_embedded(made.name) else replace(found, weights=made.weights)


def _named_by_config(bundle: Bundle) -> CheckpointSpec:
    name = str(bundle.config.get("base_model_name_or_path") or "")
    if not name:
        raise UserError(f"{bundle.label} does not name its base model; name it with --checkpoint")
    if name.startswith(("/", ".", "~")):
        raise UserError(f"{bundle.label} names a folder of another machine as its base; name it with --checkpoint")
    return checkpoint_spec(name)


def as_trained_from(base: CheckpointSpec, made: CheckpointSpec) -> CheckpointSpec:
    """Return `base` with the re-initialised parts, tokenizer and languages of `made`, which was used in training."""
    kept = ("reinit", "tokenizer", "tokenizer_source", "added_tokens", "source_language", "target_language")
    return replace(base, **{name: getattr(made, name) for name in kept})


def refuse_other_base(base: Base, loaded: Loaded, where: Where) -> None:
    """Refuse a base other than the one that the adapter was trained on.

    With another base, an adapter generates empty or meaningless texts without any error. Two bases are equal if they
    have the same hub commit; otherwise the sha256 of their weights and the fields of their config.json are compared. If
    the tokenizer differs, a warning is logged.

    Raises:
        UserError: the commits differ and `where.revision` is None; or the weights or the configuration differ,
            `where.revision` is None and `where.any_base` is False.
    """
    name = base.checkpoint.name
    if where.revision is None and base.commit and loaded.commit and loaded.commit != base.commit:
        raise UserError(
            f"{name} is at commit {loaded.commit[:12]}, and the adapter was trained at {base.commit[:12]}; "
            f"--revision {loaded.commit[:12]} takes it all the same"
        )
    if not (base.commit and loaded.commit == base.commit) and not where.any_base and where.revision is None:
        if other := differing_weights(base, loaded):
            raise UserError(f"{name} is not the base that the adapter was trained on: {other}; --any-base uses it")
        if changed := changed_configuration(base, loaded):
            raise UserError(
                f"config.json of {name} changed since the adapter was trained: {changed}; restore it, or --any-base "
                "uses it as it is"
            )
    recorded = base.trained_on.get("tokenizer_sha256")
    if recorded and tokenizer_sha256(loaded.tokenizer) != recorded:
        _log.warning("the tokenizer of %s is not the one that the adapter was trained with", name)


def changed_configuration(base: Base, loaded: Loaded) -> str | None:
    """Return the fields of config.json that differ from the recorded ones; None if none do or none were recorded."""
    recorded = base.trained_on.get("configuration")
    if not recorded:
        return None
    now = configuration_record(base.checkpoint, loaded)
    return differing_fields(recorded, now, "{name} was {first} and is {second}")


def differing_weights(base: Base, loaded: Loaded) -> str | None:
    """Return a text about the first weight file whose sha256 is not the one recorded in training.

    None if all files have the recorded sha256, or if no sha256 was recorded.
    """
    expected = base.trained_on.get("weights_sha256") or {}
    if not expected:
        return None
    found = weight_hashes(base.checkpoint, loaded.commit)
    other = next((file for file in {**expected, **found} if expected.get(file) != found.get(file)), None)
    if other is None:
        return None
    return f"{other} has the sha256 {str(found.get(other))[:12]}..., not {str(expected.get(other))[:12]}..."
