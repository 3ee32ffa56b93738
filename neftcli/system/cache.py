"""Where this tool keeps what can be made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neftcli.errors import InputError, Problem


def cache_folder() -> Path:
    """NEFT_CACHE, or `neft` in the user's cache folder.

    Raises:
        InputError: There is no home folder, and no variable names a folder instead.
    """
    if own := os.environ.get("NEFT_CACHE"):
        return Path(own)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "neft"
    return home("neft's cache", "NEFT_CACHE") / ".cache" / "neft"


def home(what: str, variable: str) -> Path:
    """The user's home folder, where `what` is.

    Raises:
        InputError: HOME is not set, and the system knows none; `variable` names a folder instead.
    """
    try:
        return Path.home()
    except RuntimeError:
        said = f"{what} is in ~/.cache, and this user has no home folder"
        got = f"HOME is not set, and the system knows no user {os.getuid()}"
        raise InputError(Problem(said, got, f"{variable}=FOLDER before the command")) from None


def unwritable(folder: Path) -> str:
    """The reason why a folder, existing or not, can't be written; an empty string if it can."""
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is no folder"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} can't be written"


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
        got = f"{error.strerror or error}"
        if folder.is_dir():
            got += f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB are free)"
        elif folder.exists():
            got = "it is no folder"
        hint = "NEFT_CACHE=FOLDER before the command, with a folder that has room"
        raise InputError(Problem(f"{folder}: {what} can't be written there", got, hint)) from None
