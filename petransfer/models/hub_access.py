"""Detect at once that the hub cannot be reached, instead of after the retries of every request."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from petransfer.errors import UserError
from petransfer.models.registry import is_embedded
from petransfer.recipe.run_spec import CheckpointSpec

# Seconds to wait for a connection to the hub.
PATIENCE = 5.0
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


@functools.cache
def hub_is_reachable() -> bool:
    """Return whether a connection to the hub can be opened; always True behind a proxy, which decides for itself."""
    from huggingface_hub import constants  # takes time to import

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def use_cache_if_unreachable() -> bool:
    """Restrict huggingface_hub to its cache, in this process and its workers, if the hub cannot be reached.

    Returns:
        Whether the hub can be reached.
    """
    if hub_is_reachable():
        return True
    from huggingface_hub import constants

    # every request reads the constant; the variable is for worker processes, which import the library later
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    return False


def refuse_unreachable(checkpoints: Iterable[CheckpointSpec]) -> None:
    """Refuse checkpoints that are neither in a folder nor in the cache if the hub cannot be reached.

    Raises:
        UserError: One of them cannot be loaded.
    """
    on_hub = dict.fromkeys(checkpoint for checkpoint in checkpoints if _is_on_hub(checkpoint))
    if not on_hub or use_cache_if_unreachable():
        return
    from huggingface_hub import try_to_load_from_cache

    from petransfer.models.checkpoint_files import location, revision  # imports transformers

    for checkpoint in on_hub:
        name = location(checkpoint)
        if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision(checkpoint)), str):
            raise UserError(
                f"{name} is not in the local cache and the hub cannot be reached; check the network, name a folder "
                "that holds the model, or use an embedded checkpoint such as nano/english"
            )


def _is_on_hub(checkpoint: CheckpointSpec) -> bool:
    return not is_embedded(checkpoint.name) and not Path(checkpoint.source or checkpoint.name).exists()
