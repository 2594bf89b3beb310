"""Check once whether the hub can be reached, because each failing request costs time."""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlsplit

# Seconds to wait for a connection to the hub.
PATIENCE = 5.0
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


@functools.cache
def hub_is_reachable() -> bool:
    """Return whether a connection to the hub can be opened. True, without a test, if a proxy is set."""
    from huggingface_hub import constants  # imported here because it takes time

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
    """Return whether the hub can be reached. If not, restrict huggingface_hub to its cache."""
    if hub_is_reachable():
        return True
    from huggingface_hub import constants

    # Every request reads the constant. The environment variable is for worker processes, which import the library
    # later.
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    return False
