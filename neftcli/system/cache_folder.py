"""neft's cache folder, for files that can be made again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neftcli.errors import DISK_FULL, InputError, Problem
from neftcli.system.files import format_bytes


def cache_folder() -> Path:
    """Return NEFT_CACHE, or `neft` in the user's cache folder.

    Raises:
        InputError: The user has no home folder, and no variable names a cache folder.
    """
    if folder := os.environ.get("NEFT_CACHE"):
        return Path(folder)
    if user_cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(user_cache) / "neft"
    return home_folder("neft's cache", "NEFT_CACHE") / ".cache" / "neft"


def home_folder(content: str, variable: str) -> Path:
    """Return the user's home folder.

    Args:
        content: What is stored in it, for the message.
        variable: Environment variable that names another folder for it.

    Raises:
        InputError: HOME is not set, and the system does not know the user.
    """
    try:
        return Path.home()
    except RuntimeError:
        message = f"{content} is in ~/.cache, and this user has no home folder"
        got = f"HOME is not set, and the system knows no user {os.getuid()}"
        raise InputError(Problem(message, got, f"{variable}=FOLDER before the command")) from None


def explain_unwritable(folder: Path) -> str:
    """Return why a folder can't be written or created; empty if it can."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} is not writable"


@contextmanager
def open_cache_folder(content: str) -> Iterator[Path]:
    """Create the cache folder, and report errors of writing to it within the block.

    Args:
        content: What is written, for the message.

    Raises:
        InputError: The folder can't be created or written, or the disk is full.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        got = f"{error.strerror or error}"
        if folder.is_dir():
            got += f" ({format_bytes(shutil.disk_usage(folder).free)} free)"
        elif folder.exists():
            got = "it is not a folder"
        code = DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        hint = "NEFT_CACHE=FOLDER before the command; choose a folder on a disk with free space"
        raise InputError(Problem(f"{folder}: {content} can't be written there", got, hint, code=code)) from None
