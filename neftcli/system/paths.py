"""Look up paths as they are typed, and suggest similar ones."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

MAX_CANDIDATES = 2000
"""Names of a folder that are compared; more take seconds."""
MIN_SIMILARITY = 0.7
"""Similarity of names (difflib) from which one is suggested in place of another."""


def exists(path: Path) -> bool:
    """Return whether a path exists; False if no file system allows its name."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL character
        return False


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False if no file system allows its name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False if no file system allows its name."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def expand_home(name: str) -> Path:
    """Return the path of a name, with ~ replaced by the home folder if there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~ and an unknown user
        return Path(name)


def unsearchable_parent(path: Path) -> Path | None:
    """Return the first parent folder of a path that this user may not enter; None if there is none."""
    for parent in reversed(path.absolute().parents):
        if not exists(parent):
            break
        if not os.access(parent, os.X_OK):
            return parent
    return None


def closest_path(path: Path, others: Iterable[str] = (), endings: Collection[str] = ()) -> str:
    """Return the existing path most similar to a missing one; empty if none is similar.

    Each part of the path is compared with the names in its folder.

    Args:
        path: The missing path.
        others: Names that are not paths and are suggested as well.
        endings: Suggest files only with one of these endings or that of `path`; if empty, with any.
    """
    similar_names = get_close_matches(str(path), others, n=1, cutoff=MIN_SIMILARITY)
    if similar_names:
        return similar_names[0]
    closest = Path(path.anchor)
    for part in path.parts[len(closest.parts) :]:
        if exists(closest / part):
            closest /= part
            continue
        names: list[str] = []
        with suppress(OSError, ValueError):  # not a folder, or not readable
            names = [item.name for item in islice(closest.iterdir(), MAX_CANDIDATES)]
        if endings and part == path.name:
            names = [name for name in names if Path(name).suffix in (*endings, path.suffix)]
        similar = get_close_matches(part, names, n=1, cutoff=MIN_SIMILARITY)
        if not similar:
            return ""
        closest /= similar[0]
    return "" if closest == path else str(closest)
