"""Check that the names in somebody else's folder lead to files in it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def leads_out(folder: Path, name: str) -> str:
    """What leads out of a folder by a name in one of its files; empty if the name stays inside.

    A snapshot in the hub's cache consists of links to the blobs beside it, which belong to it.

    Args:
        folder: The folder.
        name: A file's path relative to it.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return name
    try:
        target = (folder / name).resolve()
        homes = [folder.resolve(), *_blobs(folder.resolve())]
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file system has
        return name
    if any(target.is_relative_to(home) for home in homes):
        return ""
    return f"{name}, a link to {target}"


def _blobs(folder: Path) -> list[Path]:
    """Where the hub's cache stores the files of a snapshot; empty for other folders."""
    snapshots = (parent for parent in (folder, *folder.parents) if parent.parent.name == "snapshots")
    return [snapshot.parents[1] / "blobs" for snapshot in snapshots]
