"""Attach adapters from bundles to their base, which is loaded once. Every adapter is checked before it is applied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

import petransfer.models.bitsandbytes_import  # noqa: F401 - must precede peft

# isort: split
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from petransfer.errors import UserError, reason_of
from petransfer.methods.shared.compute_dtype import compute_as_in_training
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import Bits
from petransfer.sharing.bundle import Bundle, checked_bundle
from petransfer.sharing.size_checks import brings_embeddings, check_sizes, resize_vocabulary
from petransfer.sharing.slow_patterns import refuse_slow_patterns

COMBINED = "combined"
# The name of the first adapter on a base. It is not a bare number, because peft would take that for a layer's number.
FIRST = "adapter0"
COMBINATIONS = ("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "magnitude_prune")
# The end of the names of tensors with trained rows of the embeddings.
_ROWS = "trainable_tokens_delta"
# Combinations whose names begin with one of these words use only a part of each adapter's weights. DENSITY is the size
# of this part, from 0 to 1.
_SPARSE, DENSITY = ("ties", "dare", "magnitude"), 0.5


def attach(loaded: Loaded, bundles: Sequence[Bundle], bits: Bits) -> PeftModel:
    """Attach adapters to their base as `adapter0`, `adapter1`, ..., and return the peft model. `adapter0` is active.

    Args:
        bits: bits of the loaded base.

    Raises:
        UserError: an adapter's files fail a check, or its tensors do not fit the base.
    """
    model: Any = loaded.model
    for bundle in map(checked_bundle, bundles):
        refuse_slow_patterns(bundle, model)
    if len(bundles) == 1:
        resize_vocabulary(bundles[0], model)
    brings = next((bundle for bundle in bundles if brings_embeddings(bundle, model)), None)
    if brings and len(bundles) > 1:
        raise UserError(f"{brings.label} brings embeddings of its own for the base; use it without other adapters")
    own_embeddings = [check_sizes(bundle, model) for bundle in bundles]
    tables = _trained_tables(bundles, model)
    for at, bundle in enumerate(bundles):
        try:
            config = PeftConfig.from_pretrained(str(bundle.weights.parent))
            config.inference_mode = True
            borrows = bool(tables) and hasattr(config, "trainable_token_indices") and not config.trainable_token_indices
            if borrows:
                # peft fails if some adapters train rows of the embeddings and others do not. The first row of each
                # table is therefore given to the others, with the values of the base.
                config.trainable_token_indices = {table: [0] for table in tables}
            config.base_model_name_or_path = loaded.model.name_or_path  # peft warns about any other name
            if at:  # the adapters that are already attached have layers too
                refuse_slow_patterns(bundle, model)
                model.add_adapter(_name(at), config)
            else:
                model = get_peft_model(model, config, adapter_name=FIRST)
        except Exception as error:  # peft checks few values, so that a wrong one can raise any error
            reason = reason_of(error, 160)
            raise UserError(
                f"{bundle.label} cannot be applied to {loaded.model.config.model_type}: {reason}"
            ) from error
        _load_tensors(model, bundle, _name(at), own_embeddings[at], borrows)
    compute_as_in_training(model, bits)
    model.set_adapter(FIRST)
    return model.to(loaded.model.device).eval()


def _trained_tables(bundles: Sequence[Bundle], base: Any) -> list[str]:
    """Return the names (or the ends of the names) of the embedding tables in which an adapter trains some rows."""
    embeddings = base.get_input_embeddings()
    own = next(name for name, module in base.named_modules() if module is embeddings)
    rows = [bundle.config.get("trainable_token_indices") or {} for bundle in bundles]
    # a list of rows means the base's input embeddings
    names = {name for one in rows for name in (one if isinstance(one, dict) else [own])}
    return sorted(name for name in names if not name.endswith(tuple(f".{other}" for other in names)))


def _name(at: int) -> str:
    return f"adapter{at}"


def _load_tensors(
    model: PeftModel, bundle: Bundle, name: str, own_embeddings: frozenset[str], borrows: bool = False
) -> None:
    """Load a bundle's tensors into the adapter `name`. Tensors in `own_embeddings` replace the base's embeddings.

    borrows: whether the adapter has rows of the embeddings that are not in the bundle.
    """
    places = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    borrowed = {key: value for key, value in places.items() if borrows and key.endswith(_ROWS)}
    expected = {key: tuple(value.shape) for key, value in places.items() if key not in borrowed}
    # embeddings named in `modules_to_save` are parameters of the adapter; other embeddings replace the base's
    copies = _copies(bundle.tensors)
    found = {
        key: shape
        for key, (_, shape) in bundle.tensors.items()
        if key in expected or (key not in own_embeddings and key not in copies)
    }
    extra, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if extra:
        raise _unfit(bundle, f"tensors have no place, such as {extra[0]} ({len(extra):,} in all)")
    if missing:
        raise _unfit(bundle, f"tensors are missing, such as {missing[0]} ({len(missing):,} in all)")
    other = next((key for key in expected if found[key] != expected[key]), None)
    if other:
        raise _unfit(bundle, f"{other} is {list(found[other])}, but the base model needs {list(expected[other])}")
    tensors = {key: value for key, value in load_file(bundle.weights).items() if key in expected or key not in copies}
    broken = next((key for key, value in tensors.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise UserError(f"{bundle.label} is refused: {broken} contains NaN or infinity")
    set_peft_model_state_dict(model, tensors | borrowed, adapter_name=name)


def _copies(names: Iterable[str]) -> set[str]:
    """Return the tensors that an adapter has under a second name.

    If the vocabulary was resized and `modules_to_save` names the embeddings, peft saves each table three times: as it
    is used, under peft's inner name, and as it was before training.
    """
    names = set(names)
    return {
        name
        for name in names
        for inner in (".modules_to_save.", ".original_module.")
        if inner in name and name.replace(inner, ".") in names
    }


def _unfit(bundle: Bundle, why: str) -> UserError:
    return UserError(f"{bundle.label} does not fit its base: {why}")


def combine(model: PeftModel, weights: Sequence[float], kind: str) -> None:
    """Combine all attached adapters into one new adapter, and make the new adapter active.

    Args:
        weights: one weight per adapter, in the order of attaching.
        kind: one of COMBINATIONS, peft's names of combination methods.

    Raises:
        UserError: peft cannot combine these adapters.
    """
    rows = [config.trainable_token_indices for config in model.peft_config.values() if hasattr(config, "r")]
    if any(rows):
        raise UserError("these adapters train rows of the embeddings, which peft leaves out of a combination")
    names = [_name(at) for at in range(len(weights))]
    sparse = {"density": DENSITY} if kind.startswith(_SPARSE) else {}
    torch.manual_seed(0)  # the dare combinations draw random numbers
    try:
        model.add_weighted_adapter(names, list(weights), COMBINED, combination_type=kind, **sparse)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise UserError(f"peft cannot combine them: {reason_of(error, 160)}") from error
    model.set_adapter(COMBINED)
    model.eval()
