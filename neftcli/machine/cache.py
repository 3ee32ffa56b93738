"""Where this tool keeps what can be made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neftcli.errors import InputError, Problem


def cache_folder() -> Path:
    """NEFT_CACHE, or `neft` in the user's cache folder."""
    if own := os.environ.get("NEFT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neft"


@contextmanager
def written_in_cache(what: str) -> Iterator[Path]:
    """Makes the cache folder, in which `what` is written within the block.

    Raises:
        InputError: It can't be made or written, or the disk is full.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        received = f"{error.strerror or error}"
        if folder.is_dir():
            received += f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB are free)"
        elif folder.exists():
            received = "it is no folder"
        remedy = "NEFT_CACHE=FOLDER before the command, with a folder that has room"
        raise InputError(Problem(f"{folder}: {what} can't be written there", received, remedy)) from None
