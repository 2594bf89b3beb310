"""Attach several adapters to one base, which is loaded once, and combine the adapters with weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petransfer.errors import UserError
from petransfer.evaluation.predictor import Predictor
from petransfer.models.configuration_record import differing_fields
from petransfer.models.hashes import tokenizer_sha256
from petransfer.models.loading import Loaded
from petransfer.models.thread_turns import torch_state_lock
from petransfer.plurals import count
from petransfer.recipe.run_spec import Bits, CheckpointSpec
from petransfer.sharing.attach import COMBINATIONS, COMBINED, FIRST, attach, combine
from petransfer.sharing.base import AdapterBase, LoadOptions, base_of, refuse_other_base
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.own_tokenizer import with_own_tokenizer


@dataclass(frozen=True)
class Combination:
    """A weighted combination of adapters.

    weights: one weight per adapter.
    kind: peft's name of the combination method, such as `linear`.
    """

    weights: tuple[float, ...]
    kind: str = "linear"


@dataclass(frozen=True)
class AttachedAdapters:
    """Adapters attached to their base.

    model: the peft model.
    loaded: the base and its tokenizer.
    base: how the base was loaded.
    bundles: bundle of each adapter, by the adapter's name in peft.
    labels: label of each adapter, by the adapter's name in peft. A combination comes last.
    with_tokenizers: the base with the tokenizer of each adapter, by the adapter's name in peft.
    """

    model: Any
    loaded: Loaded
    base: AdapterBase
    bundles: Mapping[str, Bundle]
    labels: Mapping[str, str]
    with_tokenizers: Mapping[str, Loaded]

    def each(self) -> Iterator[tuple[str, str, Predictor]]:
        """Activate each adapter in turn, and yield the adapter's name, label and predictor."""
        for name, label in self.labels.items():
            self.model.set_adapter(name)
            yield name, label, self.predictor(name)

    def predictor(self, name: str) -> Predictor:
        """Return a predictor with an adapter's input prefix (a text), template and chat format.

        The adapter is not activated. A combination uses those of the first adapter.
        """
        one = name if name in self.bundles else FIRST
        bundle, loaded = self.bundles[one], self.with_tokenizers[one]
        return Predictor(self.model, loaded, bundle.prefix(), bundle.template(), bundle.chat())


@torch_state_lock()
def load_adapters(
    bundles: Sequence[Bundle],
    load_options: LoadOptions,
    combination: Combination | None = None,
    bits: Bits | None = None,
) -> AttachedAdapters:
    """Load the base once and attach all adapters to it.

    Args:
        combination: also make this combination of the adapters.
        bits: bits of the loaded base. Default: as in training.

    Raises:
        UserError: the adapters have different bases, cannot share a base in memory, or do not fit their base.
    """
    if combination:
        _check(bundles, combination)
    refuse_different_bases(bundles, load_options.checkpoint is not None)
    _refuse_separate_adapters(bundles)
    base = base_of(bundles[0], load_options, bits)
    loaded = base.load(load_options.device)
    refuse_other_base(base, loaded, load_options)
    model = attach(loaded, bundles, base.bits)
    named = dict(zip(model.peft_config, bundles, strict=True))
    with_tokenizers = {name: with_own_tokenizer(loaded, bundle, base) for name, bundle in named.items()}
    labels = {name: bundle.label for name, bundle in named.items()}
    if combination:
        _refuse_different_tokenizers(with_tokenizers, labels)
        combine(model, combination.weights, combination.kind)
        terms = " + ".join(
            f"{weight:g} x {label}" for weight, label in zip(combination.weights, labels.values(), strict=True)
        )
        labels[COMBINED] = f"{combination.kind}: {terms}"
    return AttachedAdapters(model, loaded, base, named, labels, with_tokenizers)


def _check(bundles: Sequence[Bundle], combination: Combination) -> None:
    if combination.kind not in COMBINATIONS:
        raise UserError(f"no combination '{combination.kind}'; choose one of {', '.join(COMBINATIONS)}")
    wrong = next((weight for weight in combination.weights if not math.isfinite(weight)), None)
    if wrong is not None:
        raise UserError(f"--weights: {wrong} is no weight; write numbers, such as 0.5,0.5")
    if len(combination.weights) != len(bundles):
        given, needed = count(len(combination.weights), "number"), count(len(bundles), "adapter")
        raise UserError(f"--weights has {given} for {needed}; give one number for each adapter")


def _refuse_different_tokenizers(with_tokenizers: Mapping[str, Loaded], labels: Mapping[str, str]) -> None:
    found = {name: tokenizer_sha256(loaded.tokenizer) for name, loaded in with_tokenizers.items()}
    other = next((name for name in found if found[name] != found[FIRST]), None)
    if other:
        raise UserError(f"{labels[FIRST]} and {labels[other]} have different tokenizers; they cannot be combined")


def refuse_different_bases(bundles: Sequence[Bundle], base_is_given: bool = False) -> None:
    """Raise UserError if two adapters were trained on different bases or with different bits.

    Args:
        base_is_given: whether the user named the base. Adapters of other programs, which know their base only by the
            name on the machine of their training, are then not compared.
    """
    first, *others = bundles
    for bundle in others:
        if bool(first.spec) != bool(bundle.spec):
            ours, theirs = (first, bundle) if first.spec else (bundle, first)
            raise UserError(
                f"{ours.label} was trained by petransfer and {theirs.label} by another program, which does not record "
                "the weights and bits of its base; use the two one after the other"
            )
        if base_is_given and not first.spec:
            continue
        for what, of in _SHARED.items():
            if of(first) != of(bundle):
                raise UserError(
                    f"{first.label} and {bundle.label} were trained on different bases ({what}: {of(first)} and "
                    f"{of(bundle)}); they cannot share one"
                )
        mine, other = (_configuration(one) for one in (first, bundle))
        differing = differing_fields(mine, other, "{name}: {first} and {second}") if mine and other else None
        if differing:
            raise UserError(
                f"{first.label} and {bundle.label} were trained on bases with different configurations ({differing}); "
                "they cannot share one"
            )


def sharing_key(bundle: Bundle) -> tuple[object, ...]:
    """Return a key of an adapter. Two adapters can share a base in memory only if their keys are equal."""
    kind = bundle.config.get("peft_type")
    if _has_biases(bundle):
        return kind, id(bundle)
    if kind == "VERA":
        return kind, bundle.config.get("projection_prng_key"), bundle.config.get("save_projection")
    return (kind,)


def _has_biases(bundle: Bundle) -> bool:
    """Return whether an adapter replaces biases of the base. peft would then use them for all other adapters too."""
    return bool(bundle.config.get("bias", "none") != "none")


def _refuse_separate_adapters(bundles: Sequence[Bundle]) -> None:
    """Raise UserError if two adapters cannot share a base in memory."""
    first = bundles[0]
    other = next((one for one in bundles if sharing_key(one) != sharing_key(first)), None)
    if other is None:
        return
    with_biases = next((one for one in bundles if _has_biases(one)), None)
    if with_biases:
        why = f"{with_biases.label} replaces biases of the base model, which every other adapter would then use too"
        raise UserError(f"{why}; use {with_biases.label} alone")
    kind, other_kind = (one.config.get("peft_type") for one in (first, other))
    if kind == other_kind:
        raise UserError(
            f"{first.label} and {other.label} are VeRA adapters with different random matrices, which cannot share a "
            "base model in memory; use each of the two alone"
        )
    raise UserError(
        f"{first.label} is an adapter of the type {kind} and {other.label} of the type {other_kind}; only adapters of "
        "one type can share a base model in memory; use each of the two alone"
    )


def _checkpoint_of(bundle: Bundle) -> CheckpointSpec:
    return bundle.spec.checkpoint if bundle.spec else CheckpointSpec(str(bundle.config.get("base_model_name_or_path")))


def _reinitialised(bundle: Bundle) -> tuple[str, int]:
    reinit = _checkpoint_of(bundle).reinit
    return reinit, bundle.spec.seed if bundle.spec and reinit != "none" else 0


def _weights(bundle: Bundle) -> str:
    base = (bundle.provenance or {}).get("base", {})
    return str(base.get("commit") or sorted(base.get("weights_sha256", {}).values()) or _checkpoint_of(bundle).weights)


def _configuration(bundle: Bundle) -> dict[str, Any] | None:
    found: dict[str, Any] | None = ((bundle.provenance or {}).get("base") or {}).get("configuration")
    return found


_SHARED: dict[str, Callable[[Bundle], object]] = {
    "checkpoint": lambda one: _checkpoint_of(one).name,
    "weights": _weights,
    "re-initialised weights": _reinitialised,
    "tokenizer": lambda one: _checkpoint_of(one).tokenizer,
    "bits": lambda one: (one.spec.method.bits, one.spec.method.keep_wide) if one.spec else None,
}
