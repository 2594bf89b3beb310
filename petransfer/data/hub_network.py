"""Check once whether the hub can be reached, because each failing request costs time."""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlsplit

from petransfer.errors import reason_of

# Seconds to wait for a connection to the hub.
PATIENCE = 5.0
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


@functools.cache
def why_unreachable() -> str:
    """Return why the hub cannot be reached. '' if it can be reached."""
    from huggingface_hub import constants  # imported here because it takes time

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = urlsplit(constants.ENDPOINT)
    try:
        if not any(os.environ.get(name) for name in _PROXIES):  # a connection fails sooner than a request
            port = address.port or (80 if address.scheme == "http" else 443)
            socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
        _request(constants.ENDPOINT)
    # the HTTP library raises errors of many types, such as ImportError for a proxy that needs another package
    except Exception as error:
        return reason_of(getattr(error, "strerror", None) or error, 160).rstrip(".")
    return ""


def _request(address: str) -> None:
    """Send one request through the user's proxies and certificates. Any answer is accepted."""
    from huggingface_hub import get_session

    get_session().head(address, timeout=2 * PATIENCE)


def use_cache_if_unreachable() -> bool:
    """Return whether the hub can be reached. If not, restrict huggingface_hub to its cache."""
    if not why_unreachable():
        return True
    from huggingface_hub import constants

    # Every request reads the constant. The environment variable is for worker processes, which import the library
    # later.
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    return False
