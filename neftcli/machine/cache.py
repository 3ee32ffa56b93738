"""Where this tool keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """NEFT_CACHE, or `neft` in the user's cache folder."""
    if own := os.environ.get("NEFT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neft"
