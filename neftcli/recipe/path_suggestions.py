"""What a person may have meant by a path that leads nowhere."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

MOST_NAMES = 2000  # of a folder; comparing with more takes seconds


def exists(path: Path) -> bool:
    """Whether there is something at `path`; there is nothing where no file system would have the name."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL character
        return False


def closed_folder(path: Path) -> Path | None:
    """Return the first folder on the way to `path` that this user may not enter; None if there is none."""
    for parent in reversed(path.absolute().parents):
        if not exists(parent):
            break
        if not os.access(parent, os.X_OK):
            return parent
    return None


def at_home(name: str) -> Path:
    """The path of a name, with ~ as the home folder where there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~ and the name of nobody
        return Path(name)


def nearest_path(path: Path, others: Iterable[str] = (), endings: Collection[str] = ()) -> str:
    """The existing path most like `path`, each of its parts compared with the names in its folder.

    Args:
        path: A path that leads nowhere.
        others: Names that are no paths and may be meant as well.
        endings: A file is suggested only with one of these endings or that of `path`; without them any.

    Returns:
        A path or a name; empty where a part is like nothing that is there.
    """
    near_names = get_close_matches(str(path), others, n=1)
    if near_names:
        return near_names[0]
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if exists(found / part):
            found /= part
            continue
        names: list[str] = []
        with suppress(OSError, ValueError):  # no folder, or one that can't be read
            names = [item.name for item in islice(found.iterdir(), MOST_NAMES)]
        if endings and part == path.name:
            names = [name for name in names if Path(name).suffix in (*endings, path.suffix)]
        near = get_close_matches(part, names, n=1)
        if not near:
            return ""
        found /= near[0]
    return "" if found == path else str(found)
