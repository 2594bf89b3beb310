"""The configuration of a checkpoint without its weights: from the registry, a folder, or the hub."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from petransfer.errors import UserError
from petransfer.models.registry import embedded_folder, is_embedded, registry
from petransfer.recipe.run_spec import CheckpointSpec


def configuration(checkpoint: CheckpointSpec) -> tuple[Any, bool]:
    """The checkpoint's configuration, and whether its head is not tied to its embeddings.

    A checkpoint of the registry needs no network: its entry has the fields that decide shapes.

    Raises:
        UserError: it is in no registry, folder or cache, and the hub cannot be reached.
    """
    entry = _registered(checkpoint.name)
    if entry is not None and not is_embedded(checkpoint.name) and checkpoint.source is None:
        fields = dict(registry().architectures[entry])
        if checkpoint.tokenizer:
            other = _registered(checkpoint.tokenizer)
            fields["vocab_size"] = registry().architectures[other]["vocab_size"] if other else fields["vocab_size"]
        own_head = fields.get("tie_word_embeddings") is False
        return AutoConfig.for_model(fields.pop("model_type"), **fields), own_head
    place = checkpoint.source or checkpoint.name
    if is_embedded(checkpoint.name):
        place = str(embedded_folder(checkpoint.name))
    revision = None if checkpoint.source or is_embedded(checkpoint.name) else checkpoint.weights
    try:
        content, _ = PreTrainedConfig.get_config_dict(place, revision=revision)
        return AutoConfig.from_pretrained(place, revision=revision), has_own_head(content)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"no configuration for {place} ({first}); name a folder or a checkpoint of the registry"
        ) from None


def has_own_head(content: dict[str, Any]) -> bool:
    """Whether a config.json speaks of a head of its own; the second key is what transformers 5 writes for a T5."""
    return content.get("tie_word_embeddings") is False or content.get("scale_decoder_outputs") is False


def _registered(name: str) -> str | None:
    arms = (entry for family in registry().families.values() for entry in family.arms.values())
    return next((entry.architecture for entry in arms if entry.checkpoint.split("@")[0] == name), None)
