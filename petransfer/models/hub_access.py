"""Refuse checkpoints that are not on this machine while the hub cannot be reached."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from petransfer.data.hub_network import use_cache_if_unreachable, why_unreachable
from petransfer.errors import UserError
from petransfer.models.registry import is_embedded
from petransfer.recipe.run_spec import CheckpointSpec


def refuse_unreachable(checkpoints: Iterable[CheckpointSpec], with_weights: bool = False) -> None:
    """Raise UserError if the hub cannot be reached and a checkpoint is not on this machine.

    Args:
        with_weights: Whether the weights are needed too, and not only the configuration and the tokenizer.
    """
    on_hub = dict.fromkeys(checkpoint for checkpoint in checkpoints if _is_on_hub(checkpoint))
    if not on_hub or use_cache_if_unreachable():
        return
    from huggingface_hub import try_to_load_from_cache

    from petransfer.models.checkpoint_files import location, revision  # imports transformers
    from petransfer.models.hub_cache import refuse_incomplete_copy

    for checkpoint in on_hub:
        name = location(checkpoint)
        refuse_incomplete_copy(name, revision(checkpoint) or "main", checkpoint if with_weights else None)
        if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision(checkpoint)), str):
            raise UserError(
                f"{name} is not in the local cache and the hub cannot be reached ({why_unreachable()}); check the "
                "network, name a folder that holds the model, or use a checkpoint that ships with petransfer, such as "
                "nano/english"
            )


def _is_on_hub(checkpoint: CheckpointSpec) -> bool:
    return not is_embedded(checkpoint.name) and not Path(checkpoint.source or checkpoint.name).exists()
