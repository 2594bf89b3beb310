"""Putting adapters from bundles on the base that they were trained on, loaded once; nothing is applied unchecked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import petransfer.models.bitsandbytes_import  # noqa: F401 - before peft

# isort: split
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from petransfer.errors import UserError
from petransfer.methods import weights_bits
from petransfer.methods.shared.compute_dtype import compute_as_in_training
from petransfer.models.hashes import is_on_hub
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec, is_embedded
from petransfer.recipe.run_spec import Bits, CheckpointSpec, RunSpec
from petransfer.sharing.bundle import Bundle, checked
from petransfer.sharing.safe_reading import read_json

COMBINED = "combined"
# peft's names of the adapters on a base; a bare number it would take for a layer's.
FIRST = "adapter0"
COMBINATIONS = ("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "magnitude_prune")
# Combinations that leave out all but a share of each adapter's numbers, and the share.
_SPARSE, DENSITY = ("ties", "dare", "magnitude"), 0.5


@dataclass(frozen=True)
class Base:
    """Which base an adapter goes on. commit: of the hub, that it was trained at."""

    checkpoint: CheckpointSpec
    bits: Bits
    seed: int
    keep_wide: tuple[str, ...]
    commit: str | None

    def load(self, device: torch.device | str | None = None) -> Loaded:
        """The base on `device`, the GPU where there is one."""
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return load_checkpoint(self.checkpoint, self.bits, seed=self.seed, device=place, keep_wide=self.keep_wide)


def base_of(bundle: Bundle, checkpoint: str | None, revision: str | None, bits: Bits | None = None) -> Base:
    """The base that a bundle names, at the commit that it was trained at.

    checkpoint, revision, bits: say otherwise.

    Raises:
        UserError: it has to be said where the base is, or what was said cannot be.
    """
    spec = bundle.spec
    made = spec.checkpoint if spec else _named(bundle)
    found = _place(bundle, made, checkpoint)
    said = (bundle.provenance or {}).get("base", {}).get("commit") or bundle.config.get("revision")
    commit = said if isinstance(said, str) and re.fullmatch("[0-9a-f]{40}", said) else None
    if revision is not None and not is_on_hub(found):
        raise UserError(f"--revision is of the hub; {found.name} is not on it")
    if is_on_hub(found) and revision:
        found = replace(found, weights=revision)
    elif is_on_hub(found) and said and found.name == made.name and "@" not in (checkpoint or ""):
        found = replace(found, weights=str(said))
    own: Bits = weights_bits(spec.method) if spec else (16 if torch.cuda.is_available() else 32)
    return Base(found, bits or own, spec.seed if spec else 0, spec.method.keep_wide if spec else (), commit)


def _named(bundle: Bundle) -> CheckpointSpec:
    name = bundle.config.get("base_model_name_or_path")
    if not name or str(name).startswith(("/", ".", "~")):
        raise UserError(f"{bundle.label} does not say which base it is for; name it by --checkpoint")
    return checkpoint_spec(str(name))


def _place(bundle: Bundle, made: CheckpointSpec, checkpoint: str | None) -> CheckpointSpec:
    """Where the base is on this machine: named now, where the run's own spec.json found it, or by its name."""
    kept = bundle.here / "spec.json" if bundle.here else None
    here = RunSpec.from_dict(read_json(kept)).checkpoint if kept else None
    if checkpoint is not None:
        return _as_made(checkpoint_spec(checkpoint), here or made)
    if here:
        return here
    if not is_embedded(made.name) and len(made.weights) == 64:
        raise UserError(f"the base of {bundle.label} is a folder called {made.name}; name it by --checkpoint")
    found = _as_made(checkpoint_spec(made.name), made)
    if is_embedded(made.name) and made.weights not in ("main", found.weights):
        raise UserError(f"{made.name} has other weights in this version of petransfer than {bundle.label} began with")
    return found if is_embedded(made.name) else replace(found, weights=made.weights)


def _as_made(base: CheckpointSpec, made: CheckpointSpec) -> CheckpointSpec:
    return replace(base, reinit=made.reinit, tokenizer=made.tokenizer, tokenizer_source=made.tokenizer_source)


def refuse_moved(base: Base, loaded: Loaded, revision: str | None) -> None:
    """Refuses a base of another commit than the adapter was trained at, unless it was asked for.

    Raises:
        UserError: it is.
    """
    if revision is None and base.commit and loaded.commit and loaded.commit != base.commit:
        raise UserError(
            f"{base.checkpoint.name} has moved: it is at commit {loaded.commit[:12]}, and the adapter was trained at "
            f"{base.commit[:12]}; --revision {loaded.commit[:12]} takes it all the same"
        )


def attach(loaded: Loaded, bundles: Sequence[Bundle], bits: Bits) -> PeftModel:
    """The base with all the adapters on it, called `adapter0`, `adapter1`, ...; the first is active.

    Raises:
        UserError: an adapter is not sound, or its tensors and those that the base takes are not the same.
    """
    model: Any = loaded.model
    rows = model.get_input_embeddings().num_embeddings
    for at, bundle in enumerate(map(checked, bundles)):
        _refuse_rows(bundle, rows)
        try:
            config = PeftConfig.from_pretrained(str(bundle.weights.parent))
            config.inference_mode = True
            config.base_model_name_or_path = loaded.model.name_or_path  # peft warns of any other
            if at:
                model.add_adapter(_name(at), config)
            else:
                model = get_peft_model(model, config, adapter_name=FIRST)
        except (ValueError, KeyError, TypeError, RuntimeError, NotImplementedError) as error:
            said = str(error).splitlines()[0][:160]
            raise UserError(f"{bundle.label} cannot be put on {loaded.model.config.model_type}: {said}") from error
        _land(model, bundle, _name(at))
    compute_as_in_training(model, bits)
    model.set_adapter(FIRST)
    return model.to(loaded.model.device).eval()


def _refuse_rows(bundle: Bundle, count: int) -> None:
    """Refuses trained rows of the embeddings that the base has not, which peft would look up."""
    asked = bundle.config.get("trainable_token_indices") or []
    rows = [row for one in (asked.values() if isinstance(asked, dict) else [asked]) for row in one]
    if rows and max(rows) >= count:
        raise UserError(f"{bundle.label} does not fit its base: it trains row {max(rows):,} of {count:,} embeddings")


def _name(at: int) -> str:
    return f"adapter{at}"


def _land(model: PeftModel, bundle: Bundle, name: str) -> None:
    """Puts the tensors in, when every one has its place and every place its tensor."""
    places = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    expected = {key: tuple(value.shape) for key, value in places.items()}
    found = {key: shape for key, (_, shape) in bundle.tensors.items()}
    lost, open_ = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if lost:
        raise UserError(f"{bundle.label} does not fit its base: {len(lost)} tensors have no place, such as {lost[0]}")
    if open_:
        raise UserError(f"{bundle.label} does not fit its base: {len(open_)} tensors are missing, such as {open_[0]}")
    other = next((key for key in expected if found[key] != expected[key]), None)
    if other:
        raise UserError(
            f"{bundle.label} does not fit its base: {other} is {list(found[other])}, and the base takes "
            f"{list(expected[other])}"
        )
    tensors = load_file(bundle.weights)
    broken = next((key for key, value in tensors.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise UserError(f"{bundle.label} is refused: {broken} holds numbers that are none (NaN or infinite)")
    set_peft_model_state_dict(model, tensors, adapter_name=name)


def combine(model: PeftModel, weights: Sequence[float], kind: str) -> None:
    """Makes the weighted combination of all adapters the active one, by peft's own API.

    Raises:
        UserError: peft cannot combine them.
    """
    rows = [config.trainable_token_indices for config in model.peft_config.values() if hasattr(config, "r")]
    if any(rows):
        raise UserError("these adapters train rows of the embeddings, which peft leaves out of a combination")
    names = [_name(at) for at in range(len(weights))]
    sparse = {"density": DENSITY} if kind.startswith(_SPARSE) else {}
    torch.manual_seed(0)  # dare draws
    try:
        model.add_weighted_adapter(names, list(weights), COMBINED, combination_type=kind, **sparse)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise UserError(f"peft cannot combine them: {str(error).splitlines()[0][:160]}") from error
    model.set_adapter(COMBINED)
    model.eval()


def together(bundles: Sequence[Bundle]) -> None:
    """Refuses adapters that were not trained on one base in one width: they cannot share a base that is loaded once.

    Raises:
        UserError: two of them were not.
    """
    first, *others = bundles
    for bundle in others:
        for what, of in _SHARED.items():
            if of(first) != of(bundle):
                raise UserError(
                    f"{first.label} and {bundle.label} were trained on different bases ({what}: {of(first)} and "
                    f"{of(bundle)}); they cannot share one"
                )


def _spec_of(bundle: Bundle) -> CheckpointSpec:
    return bundle.spec.checkpoint if bundle.spec else CheckpointSpec(str(bundle.config.get("base_model_name_or_path")))


def _drawn(bundle: Bundle) -> tuple[str, int]:
    reinit = _spec_of(bundle).reinit
    return reinit, bundle.spec.seed if bundle.spec and reinit != "none" else 0


def _weights(bundle: Bundle) -> str:
    base = (bundle.provenance or {}).get("base", {})
    return str(base.get("commit") or sorted(base.get("weights_sha256", {}).values()) or _spec_of(bundle).weights)


_SHARED: dict[str, Callable[[Bundle], object]] = {
    "checkpoint": lambda one: _spec_of(one).name,
    "weights": _weights,
    "weights drawn anew": _drawn,
    "tokenizer": lambda one: _spec_of(one).tokenizer,
    "bits": lambda one: (one.spec.method.bits, one.spec.method.keep_wide) if one.spec else None,
}
