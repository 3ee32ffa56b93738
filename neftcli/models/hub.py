"""Whether the hub can be reached, asked once and quickly.

The hub's client retries an unreachable address for most of a minute. So a connection is tried first, and where none
comes about the libraries are told to use their cache only.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

PATIENCE = 3.0  # seconds
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def prefer_cache_if_unreachable() -> bool:
    """Puts the hub's libraries in offline mode where no connection comes about; to be called before they are imported.

    Returns:
        Whether the hub's libraries will use their cache only.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    if any(os.environ.get(proxy) for proxy in PROXIES):
        return False
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return True
    return False
