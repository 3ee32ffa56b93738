"""Write below a run, a sweep or the cache: files whole or not at all, on the disk, and never through a link.

A folder that comes from somebody else may hold links to anywhere. So a folder that will be written to is searched for
links first (`require_no_links`), before anything is started; a file that is added to is opened without following one
(`open_without_links`); an atomic write replaces whatever has the file's name (`atomic_write`); and `remove` removes a
link, not its target. Libraries write into folders that were made just before. Nothing here guards against a person who
changes the folder at the same time and has the rights to do so.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from neftcli.errors import InputError, Problem

TEMPORARY = re.compile(r"\.(.+)\.neft-[0-9a-f]{8}")
"""Names that `temporary_name` gives, with the final name as a group; a kill leaves such files and folders."""
STALE_AFTER = 3600.0
"""Seconds without a change after which a temporary file counts as abandoned."""
WRITABLE_BY_ALL = 0o002


def temporary_name(name: str) -> str:
    """Return a name for a file or folder until it gets its final `name`.

    It holds neft's own, since what has such a name is removed when it is old: `.backup.20250101` is the user's.
    """
    return f".{name}.neft-{token_hex(4)}"


def restrict_umask() -> None:
    """Let nobody but the user and the group write what this process makes, whatever umask it was started with."""
    os.umask(os.umask(0o077) | WRITABLE_BY_ALL)


def require_no_links(place: Path, *, but: tuple[Path, ...] = ()) -> None:
    """Check that `place` and everything below it are files and folders: no links, no pipes, no devices.

    Args:
        place: A file or folder that will be written to; it need not exist.
        but: Paths below it that may be links.

    Raises:
        InputError: One is something else.
    """
    for path in (place, *_below(place)):
        if path not in but:
            require_no_link(path)


def require_no_link(path: Path) -> None:
    """Check that `path` is a file, a folder or nothing.

    Raises:
        InputError: It is a link, or something that can't be written as a file is.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing is there, or it went meanwhile
        return
    hint = f"rm {shlex.quote(str(path))}"
    if stat.S_ISLNK(mode):
        got = f"it leads to {path.readlink()}"
        hint += "    removes the link, not what it leads to"
        raise InputError(Problem(f"{path}: this would be written to, and is a link", got, hint))
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        message = f"{path}: this would be written to, and is neither a file nor a folder"
        raise InputError(Problem(message, stat.filemode(mode), hint))


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):  # does not go into links
        yield from (Path(parent, name) for name in (*folders, *files))


def open_without_links(path: Path, mode: str, errors: str = "strict") -> IO[Any]:
    """Open a file to change it or to add to it; text as UTF-8.

    Raises:
        OSError: It is a link, or can't be written.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)  # as private as the umask says

    if "b" in mode:
        return open(path, mode, opener=opener)
    return open(path, mode, encoding="utf-8", errors=errors, opener=opener)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write `path` by a temporary file beside it, fsync, and a rename; text as UTF-8."""
    beside = path.with_name(temporary_name(path.name))
    with beside.open("xb") as file:  # as private as the umask says
        try:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def fsync_path(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, or a link alone; nothing if it is not there.

    Raises:
        OSError: It can't be removed.
    """
    if path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_if_possible(path: Path) -> bool:
    """Remove a file, a folder or a link as far as possible, and return whether it is gone.

    On NFS a file that a process has open stays until that process ends, under a name such as `.nfs0123`.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
    return not os.path.lexists(path)


def clear_path(path: Path) -> None:
    """Remove whatever has the name `path`; if some of it stays, give it a temporary name.

    Raises:
        OSError: It can't be renamed.
    """
    if not remove_if_possible(path):
        path.rename(path.with_name(temporary_name(path.name)))


def make_empty_folder(folder: Path) -> None:
    """Make an empty folder in the place of whatever is there, for a library to write into."""
    clear_path(folder)
    folder.mkdir()


def remove_stale_files(folder: Path) -> None:
    """Remove from `folder` temporary files that killed processes left, and what `clear_path` could not remove."""
    for path in folder.glob(".*"):
        with suppress(FileNotFoundError):
            if TEMPORARY.fullmatch(path.name) and is_stale(path):
                remove_if_possible(path)


def is_stale(path: Path) -> bool:
    """Return whether the last change is so long ago that nobody writes there any more."""
    return time.time() - path.lstat().st_mtime > STALE_AFTER


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
