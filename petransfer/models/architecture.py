"""Get the configuration of a checkpoint without its weights: from the registry, a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from petransfer.data.hub_network import use_cache_if_unreachable
from petransfer.errors import UserError, reason_of
from petransfer.models.checkpoint_files import location, read_configuration, revision
from petransfer.models.registry import is_embedded, registered_arm, registry
from petransfer.models.support import supported_class
from petransfer.recipe.run_spec import CheckpointSpec


def configuration(checkpoint: CheckpointSpec) -> tuple[Any, bool]:
    """Return a checkpoint's configuration, and whether its output head has its own weights, not tied to the embeddings.

    A registered checkpoint needs no network, because the registry has the fields that determine the shapes.

    Raises:
        UserError: petransfer cannot train this architecture, or the checkpoint is in no registry, folder or cache and
            the hub cannot be reached.
    """
    config, own_head = _configuration(checkpoint)
    supported_class(config, checkpoint.name)
    return config, own_head


def _configuration(checkpoint: CheckpointSpec) -> tuple[Any, bool]:
    entry = registered_arm(checkpoint.name)
    if entry is not None and not is_embedded(checkpoint.name) and checkpoint.source is None:
        fields = dict(registry().architectures[entry.architecture])
        if checkpoint.tokenizer and (other := registered_arm(checkpoint.tokenizer)):
            fields["vocab_size"] = registry().architectures[other.architecture]["vocab_size"]
        own_head = fields.get("tie_word_embeddings") is False
        return AutoConfig.for_model(fields.pop("model_type"), **fields), own_head
    place, asked = location(checkpoint), revision(checkpoint)
    if not is_embedded(checkpoint.name) and not Path(place).exists():
        use_cache_if_unreachable()
    try:
        config = read_configuration(checkpoint)
        content, _ = PreTrainedConfig.get_config_dict(place, revision=asked)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no configuration for {place} ({reason_of(error, 160)}); name a folder or a checkpoint of the registry"
        ) from None
    return config, has_own_head(content, place)


def has_own_head(content: dict[str, Any], place: str) -> bool:
    """Return whether the output head of a checkpoint has its own weights, not tied to the embeddings.

    Args:
        content: the content of config.json. Either `tie_word_embeddings` or `scale_decoder_outputs` is False if the
            head has its own weights. For T5, transformers 5 writes `scale_decoder_outputs`.
        place: the folder or hub id of the checkpoint. config.json is wrong for mT5, because transformers 5 always
            writes that the head is tied. For an mT5 in a folder, the weight file is therefore checked.

    Raises:
        UserError: the weight file is damaged.
    """
    if content.get("tie_word_embeddings") is False or content.get("scale_decoder_outputs") is False:
        return True
    weights = Path(place) / "model.safetensors"
    if content.get("model_type") != "mt5" or not weights.is_file():
        return False
    try:
        with safe_open(weights, "pt") as file:
            return {"lm_head.weight", "shared.weight"} <= set(file.keys())
    except SafetensorError as error:
        raise UserError(f"the weights in {place} are damaged ({error}); get the checkpoint again") from error
