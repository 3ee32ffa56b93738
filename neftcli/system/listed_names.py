"""Check the names of files that are listed in somebody else's folder."""

from __future__ import annotations

from pathlib import PurePosixPath


def escapes_folder(name: str) -> bool:
    """Return whether a name that a file lists leads out of that file's folder.

    Only the name counts. Links are followed: whoever may create one in the folder may copy the file there as well, and
    model stores, DVC and the hub's cache consist of links.

    Args:
        name: A file's path relative to the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name
