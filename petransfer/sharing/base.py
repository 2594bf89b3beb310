"""Find the base model of an adapter, and refuse a base that differs from the one used in training."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from petransfer.errors import UserError, shortened
from petransfer.methods import weights_bits
from petransfer.models.configuration_record import configuration_record, differing_fields
from petransfer.models.hashes import (
    has_other_token_ids,
    is_on_hub,
    tensors_sha256,
    tokenizer_hashes,
    weight_hashes,
)
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec, is_embedded
from petransfer.models.special_tokens import untrained_layout
from petransfer.recipe.run_spec import Bits, CheckpointSpec
from petransfer.sharing.bundle import Bundle
from petransfer.user_paths import expanded

_log = logging.getLogger(__name__)


TENSORS = "its tensors have other values"


@dataclass(frozen=True)
class LoadOptions:
    """Where to find an adapter's base and data, and the device for the base.

    checkpoint: hub id or folder of the base model. Default: the base named in the adapter's files.
    revision: commit or branch of the base on the hub. Default: the commit used in training.
    data_dir: folder with data files.
    device: a device such as `cpu`. Default: the GPU if there is one.
    any_base: accept a base whose weights, configuration or tokenizer differ from those used in training.
    """

    checkpoint: str | None = None
    revision: str | None = None
    data_dir: Path | None = None
    device: str | None = None
    any_base: bool = False


@dataclass(frozen=True)
class AdapterBase:
    """The base model of an adapter, and how to load it.

    bits: bits of the loaded weights.
    seed: seed of the base's random weights, for a control arm.
    keep_wide: endings of the names of layers that are not quantised.
    commit: hub commit used in training. None if unknown or if the base was not on the hub.
    trained_on: the record of the base in petransfer.json. Empty without that file.
    named_by_adapter: whether only adapter_config.json names the base.
    trained_here: whether petransfer trained the adapter. It decides the layout of examples.
    """

    checkpoint: CheckpointSpec
    bits: Bits
    seed: int
    keep_wide: tuple[str, ...]
    commit: str | None
    trained_on: dict[str, Any] = field(default_factory=dict)
    named_by_adapter: bool = False
    trained_here: bool = True

    def load(self, device: torch.device | str | None = None) -> Loaded:
        """Load the base on `device`. Default: the GPU if there is one.

        Raises:
            UserError: the base is gone or cannot be loaded.
        """
        device = device or default_device()
        if self.checkpoint.source and not Path(self.checkpoint.source).exists():
            raise UserError(
                f"the base of the adapter is gone: there is no folder {self.checkpoint.source}; name the base's new "
                "place with --checkpoint"
            )
        try:
            loaded = load_checkpoint(
                self.checkpoint, self.bits, seed=self.seed, device=device, keep_wide=self.keep_wide
            )
        except UserError as error:
            if not self.named_by_adapter:
                raise
            advice = "if the base that the adapter names lies elsewhere, give --checkpoint"
            raise UserError(f"{error}; {advice}") from error
        return loaded if self.trained_here else replace(loaded, layout=untrained_layout(loaded.layout, loaded.model))


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_bits(device: str | torch.device) -> Bits:
    """Return the bits of a base with which petransfer trained nothing. Most CPUs are slow at 16 bits."""
    return 32 if torch.device(device).type == "cpu" else 16


def base_of(bundle: Bundle, load_options: LoadOptions, bits: Bits | None = None) -> AdapterBase:
    """Return the base of an adapter, at the commit used in training.

    Args:
        bits: bits of the base. Default: as in training.

    Raises:
        UserError: the base cannot be found without `load_options.checkpoint`, or `load_options.revision` is given and
            the base is not on the hub.
    """
    spec, checkpoint, revision = bundle.spec, load_options.checkpoint, load_options.revision
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
    own = weights_bits(spec.method) if spec else default_bits(load_options.device or default_device())
    wide = spec.method.keep_wide if spec else ()
    return AdapterBase(
        found,
        bits or own,
        spec.seed if spec else 0,
        wide,
        commit,
        recorded,
        named_by_adapter=spec is None and not checkpoint,
        trained_here=spec is not None,
    )


def _name_of(bundle: Bundle) -> str:
    return bundle.spec.checkpoint.name if bundle.spec else str(bundle.config.get("base_model_name_or_path"))


def _placed(bundle: Bundle, checkpoint: str | None) -> CheckpointSpec:
    """Return the base's checkpoint, from `checkpoint`, the run's folder or the bundle, in this order."""
    if bundle.spec is None:
        return checkpoint_spec(checkpoint) if checkpoint is not None else _named_by_config(bundle)
    made = bundle.spec.checkpoint
    # Only spec.json has the path of a base that is a local folder.
    local = bundle.local_spec()
    here = local.checkpoint if local else None
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
    # peft writes the path that `petransfer.load("nano/english")` loaded; this folder has no tokenizer
    if shipped := re.search(r"[/\\]petransfer[/\\]models[/\\]nano[/\\]([\w-]+)$", name):
        return checkpoint_spec(f"nano/{shipped[1]}")
    if (name.startswith(("/", ".", "~")) or "\\" in name) and not expanded(name).is_dir():
        raise UserError(
            f"{bundle.label} names {shortened(name, 100)} as its base, and there is no such folder on this machine; "
            "name the base with --checkpoint"
        )
    return checkpoint_spec(name)


def as_trained_from(base: CheckpointSpec, made: CheckpointSpec) -> CheckpointSpec:
    """Return `base` with the re-initialised parts, tokenizer and languages of `made`."""
    kept = ("reinit", "tokenizer", "tokenizer_source", "added_tokens", "source_language", "target_language")
    return replace(base, **{name: getattr(made, name) for name in kept})


def refuse_other_base(base: AdapterBase, loaded: Loaded, load_options: LoadOptions) -> None:
    """Raise UserError if the base differs from the one used in training.

    Equal hub commits mean equal bases. Otherwise the sha256 of the weights and the fields of config.json are compared.
    `load_options.revision` or `load_options.any_base` accepts a different base. A different tokenizer with the same
    token ids only logs a warning.
    """
    # With another base, an adapter generates empty or meaningless texts without any error.
    name = base.checkpoint.name
    if load_options.revision is None and base.commit and loaded.commit and loaded.commit != base.commit:
        raise UserError(
            f"{name} is at commit {loaded.commit[:12]}, and the adapter was trained at {base.commit[:12]}; "
            f"use --revision {loaded.commit[:12]} to accept it"
        )
    if (
        not (base.commit and loaded.commit == base.commit)
        and not load_options.any_base
        and load_options.revision is None
    ):
        if other := differing_weights(base, loaded):
            hint = "" if TENSORS in other else ", if its tensors have the same values"
            raise UserError(
                f"{name} is not the base that the adapter was trained on: {other}; use --any-base to accept it{hint}"
            )
        if changed := changed_configuration(base, loaded):
            raise UserError(
                f"config.json of {name} changed since the adapter was trained: {changed}; restore it, or use "
                "--any-base to accept it as it is"
            )
    refuse_other_token_ids(base.trained_on, loaded, name, load_options)


def refuse_other_token_ids(recorded: Mapping[str, Any], loaded: Loaded, name: str, load_options: LoadOptions) -> None:
    """Raise UserError if texts have other token ids than in training, unless `load_options` accepts another base.

    Other differences of the tokenizer, such as added tokens, and another chat template only log a warning.

    recorded: the record of the base in petransfer.json. Records of older versions have no token ids, so that any
        difference of the tokenizer only logs a warning.
    """
    parts, known = other_tokenizer_parts(recorded, loaded), recorded.get("token_ids")
    accepted = load_options.any_base or load_options.revision is not None
    if "tokenizer" in parts and known and not accepted and has_other_token_ids(loaded.tokenizer, known):
        raise UserError(
            f"the tokenizer of {name} changed since the adapter was trained: texts now have other token ids; restore "
            "it, or use --any-base to accept it as it is"
        )
    for part in parts:
        _log.warning("the %s of %s is not the one that was used in training, which can change the answers", part, name)


def other_tokenizer_parts(recorded: Mapping[str, Any], loaded: Loaded) -> list[str]:
    """Return the parts of the tokenizer that differ from those used in training: tokenizer, chat template."""
    now = tokenizer_hashes(loaded.tokenizer, with_template=True)
    changed = {name for name, value in now.items() if name in recorded and recorded[name] != value}
    parts = {"chat template": {"chat_template_sha256"}, "tokenizer": now.keys() - {"chat_template_sha256"}}
    return [part for part, names in parts.items() if names & changed]


def changed_configuration(base: AdapterBase, loaded: Loaded) -> str | None:
    """Return a text about the fields of config.json that changed since training. None if nothing changed."""
    recorded = base.trained_on.get("configuration")
    if not recorded:
        return None
    now = configuration_record(base.checkpoint, loaded)
    return differing_fields(recorded, now, "{name} was {first} and is {second}")


def differing_weights(base: AdapterBase, loaded: Loaded) -> str | None:
    """Return a text about the first weight file that changed since training. None if no tensor changed.

    The tensors are compared if the files differ, because the same tensors can be saved in other files.
    """
    expected = base.trained_on.get("weights_sha256") or {}
    if not expected:
        return None
    found = weight_hashes(base.checkpoint, loaded.commit)
    other = next((file for file in {**expected, **found} if expected.get(file) != found.get(file)), None)
    if other is None:
        return None
    tensors = base.trained_on.get("tensors_sha256")
    now = tensors_sha256(base.checkpoint, loaded.commit) if tensors else None
    if now is not None and now == tensors:
        return None
    if now is not None and expected.keys() != found.keys():
        return f"{TENSORS} (their sha256 is {now[:12]}..., not {str(tensors)[:12]}...)"
    if expected.keys() != found.keys():
        gone = ", ".join(sorted(expected.keys() - found.keys())) or "the same"
        new = ", ".join(sorted(found.keys() - expected.keys())) or "some are missing"
        return (
            "its weight files have other names, so their values were not compared "
            f"(in training: {shortened(gone, 100)}; now: {shortened(new, 100)})"
        )
    compared = f", and {TENSORS}" if now is not None else ""
    return f"{other} has the sha256 {str(found.get(other))[:12]}..., not {str(expected.get(other))[:12]}...{compared}"
