"""Get the configuration of a checkpoint without its weights: from the registry, a folder or the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from petransfer.errors import UserError, reason_of
from petransfer.models.checkpoint_files import location, read_configuration, revision
from petransfer.models.hub_access import refuse_unreachable
from petransfer.models.registry import is_embedded, registered_arm, registry
from petransfer.models.support import supported_class
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.unreadable_files import refuse_unreadable

# A checkpoint that has both tensors has an output head that is separate from its embeddings.
_HEAD = {"lm_head.weight", "shared.weight"}


def configuration(checkpoint: CheckpointSpec) -> tuple[Any, bool]:
    """Return a checkpoint's configuration, and whether its output head is untied from the embeddings.

    Raises:
        UserError: petransfer cannot train this architecture, or the configuration cannot be found.
    """
    config, own_head = _configuration(checkpoint)
    supported_class(config, checkpoint.name)
    return config, own_head


def _configuration(checkpoint: CheckpointSpec) -> tuple[Any, bool]:
    entry = registered_arm(checkpoint.name)
    # the registry has the fields that determine the shapes, so no network is needed
    if entry is not None and not is_embedded(checkpoint.name) and checkpoint.source is None:
        fields = dict(registry().architectures[entry.architecture])
        if checkpoint.tokenizer and (other := registered_arm(checkpoint.tokenizer)):
            fields["vocab_size"] = registry().architectures[other.architecture]["vocab_size"]
        own_head = fields.get("tie_word_embeddings") is False
        return AutoConfig.for_model(fields.pop("model_type"), **fields), own_head
    place, hub_revision = location(checkpoint), revision(checkpoint)
    if not is_embedded(checkpoint.name) and not Path(place).exists():
        refuse_unreachable([checkpoint])
    try:
        config = read_configuration(checkpoint)
        content, _ = PreTrainedConfig.get_config_dict(place, revision=hub_revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no configuration for {place} ({reason_of(error, 160)}); name a folder or a checkpoint of the registry"
        ) from None
    return config, has_own_head(content, place)


def has_own_head(content: dict[str, Any], place: str) -> bool:
    """Return whether the output head of a checkpoint is untied from the embeddings.

    `content` is the content of config.json, `place` the checkpoint's folder or hub id.
    """
    # for T5, transformers 5 writes `scale_decoder_outputs` instead of `tie_word_embeddings`
    if content.get("tie_word_embeddings") is False or content.get("scale_decoder_outputs") is False:
        return True
    # for mT5, transformers 5 always writes that the head is tied; so the weight file of a folder is checked
    weights, index = Path(place) / "model.safetensors", Path(place) / "model.safetensors.index.json"
    if content.get("model_type") != "mt5" or not (weights.is_file() or index.is_file()):
        return False
    if not weights.is_file():  # a checkpoint in several files
        try:
            return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) >= _HEAD
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{index} is damaged ({error}); get this file of the checkpoint again") from error
    refuse_unreadable(weights)
    try:
        with safe_open(weights, "pt") as file:
            return set(file.keys()) >= _HEAD
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged ({error}); get this file of the checkpoint again") from error
