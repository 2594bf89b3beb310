"""The metadata at the head of a card, in the hub's format: base, data, licence, language, tags and results."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.data import task_info, task_title
from petransfer.data.rows.folds import ALL
from petransfer.errors import UserError, reason_of
from petransfer.models.registry import is_embedded, registered_arm
from petransfer.recipe.run_spec import CheckpointSpec, RunSpec
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.bundle_files import RECIPE
from petransfer.sharing.licences import NAMES, derived_licence
from petransfer.sharing.safe_reading import card_data, read_text, read_yaml

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,59}")
SPLITS = {"dev": "validation", "test": "test"}


@dataclass(frozen=True)
class CardOptions:
    """Metadata of a card that the user can set.

    licence: the adapter's licence. Default: derived from the licences of the base and the data.
    language: languages of the data. Default: the languages of the benchmark.
    tags: additional tags.
    """

    licence: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def checked_card_options(licence: str | None, language: tuple[str, ...], tags: tuple[str, ...]) -> CardOptions:
    """Return a user's options for the card.

    Raises:
        UserError: a language is no language code, or the licence is no identifier.
    """
    for code in language:
        if not _LANGUAGE.fullmatch(code):
            raise UserError(f"--language: '{code:.20}' is no language code; give codes such as en,de,pt-BR")
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UserError(f"--licence: '{licence:.20}' is no licence's identifier; give one such as mit or cc-by-4.0")
    return CardOptions(licence, language, tags)


@dataclass(frozen=True)
class Licences:
    """The licences of the base, the data and the adapter. None means unknown."""

    base: str | None
    data: str | None
    adapter: str | None


def metadata(
    bundle: Bundle, spec: RunSpec, result: Mapping[str, Any], title: str, card_options: CardOptions
) -> tuple[ModelCardData, Licences]:
    """Return the metadata of an adapter's card, and the licences of base, data and adapter.

    Raises:
        UserError: the hub would refuse the metadata, for example a tag that is not text.
    """
    from huggingface_hub import EvalResult, ModelCardData

    licences = licences_of(bundle, spec, card_options)
    info = task_info(spec.task.name)
    hub = is_hub_name(spec.checkpoint)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=spec.task.name,
            dataset_name=f"{task_title(spec.task.name)} {spec.task.split}",
            dataset_config=spec.task.split,
            dataset_split=split,
            dataset_args={"examples": result[part]["examples"], "seed": spec.seed},
            metric_type="exact_match",
            metric_name="Exact match, %",
            metric_value=result[part]["exact_match"],
        )
        for part, split in ({} if trained_on_all(bundle) else SPLITS).items()
    ]
    try:
        data = ModelCardData(
            base_model=spec.checkpoint.name if hub else None,
            base_model_relation="adapter" if hub else None,
            library_name="peft",
            license=licences.adapter or "other",
            license_name=None if licences.adapter else "see-limits",
            datasets=_datasets(bundle, spec) or None,
            language=list(card_options.language) or (list(info.languages) if info and info.languages else None),
            pipeline_tag="text-generation",
            tags=["petransfer", spec.method.name, spec.task.name, *card_options.tags],
            model_name=title,
            eval_results=results,
        )
        data.to_yaml()
    except ValueError as error:
        raise UserError(f"the card's metadata are refused ({reason_of(error, 160)})") from None
    return data, licences


def is_hub_name(checkpoint: CheckpointSpec) -> bool:
    """Return whether a checkpoint's name is a hub id."""
    # `weights` is a sha256 of 64 digits for a folder, and a shorter revision for a checkpoint on the hub.
    return not is_embedded(checkpoint.name) and len(checkpoint.weights) != 64


def _datasets(bundle: Bundle, spec: RunSpec) -> list[str]:
    """Return the hub ids of the training data. Empty for data that are not on the hub."""
    info = task_info(spec.task.name)
    if info and info.published:
        return list(info.hub_datasets)
    recipe = recipe_of(bundle)
    train = str(((recipe.get("task") or {}).get("options") or {}).get("train", ""))
    name = train.partition("@")[0]
    if os.path.exists(Path(str(recipe.get("data_dir") or "")) / name):  # a folder on this machine, such as data/rows
        return []
    owner, slash, rest = name.partition("/")
    return [name] if slash and owner not in ("", ".", "..", "~") and "/" not in rest and "." not in rest else []


def trained_on_all(bundle: Bundle) -> bool:
    """Return whether the adapter was trained on all rows of its data, after cross-validation.

    The card of this adapter has no scores, because the scores were computed on training rows.
    """
    return ((recipe_of(bundle).get("task") or {}).get("options") or {}).get("fold") == ALL


def recipe_of(bundle: Bundle) -> dict[str, Any]:
    """Return the recipe of the study. Empty without a recipe in the bundle."""
    return read_yaml(read_text(bundle.files[RECIPE]), RECIPE) if RECIPE in bundle.files else {}


def licences_of(bundle: Bundle, spec: RunSpec, card_options: CardOptions) -> Licences:
    """Return the licences of the base, the data and the adapter.

    `card_options.licence` overrides the adapter's licence. Otherwise it is derived from base and data. It is unknown
    for an adapter trained on the user's own files, because only the user knows the licence of these files.
    """
    entry = registered_arm(spec.checkpoint.name)
    base = NAMES.get(entry.licence, entry.licence) if entry else _licence_on_hub(spec, bundle)
    if spec.checkpoint.reinit == "all":
        base = "cc0-1.0"  # all weights are random, so the adapter contains nothing that the checkpoint learnt
    info = task_info(spec.task.name)
    data = info.licence if info else None
    return Licences(base, data, card_options.licence or derived_licence(base, data))


def licence_note(bundle: Bundle, card_options: CardOptions) -> str:
    """Return advice if the adapter's licence is unknown. Empty if it is known, or if there is no card to write.

    A card without a known licence has the licence `other`, and names the licences of the base and the data if they are
    known.
    """
    if bundle.spec is None:
        return ""
    found = licences_of(bundle, bundle.spec, card_options)
    if found.adapter:
        return ""
    reason = "the licences of its base and its data do not determine it"
    if found.base is None or found.data is None:
        unknown = " and ".join(part for part, one in (("base", found.base), ("data", found.data)) if one is None)
        reason = f"the licence of its {unknown} is not known"
    return f'the card says licence "other", because no licence was named and {reason}; name one with --licence'


def _licence_on_hub(spec: RunSpec, bundle: Bundle) -> str | None:
    """Return the licence on the base's hub card. None without that card in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    if not is_hub_name(spec.checkpoint):
        return None
    commit = (bundle.provenance or {}).get("base", {}).get("commit")
    found = try_to_load_from_cache(spec.checkpoint.name, "README.md", revision=commit or spec.checkpoint.weights)
    try:
        stated = card_data(read_text(Path(found))).get("license") if isinstance(found, str) else None
    except UserError:  # a card that petransfer cannot read counts as a card without a licence
        return None
    return stated if isinstance(stated, str) else None
