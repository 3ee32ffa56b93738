"""Write below a run, a sweep or the cache: atomically, durably, and never through a link.

A folder that comes from somebody else may contain links to anywhere. So a folder that will be written to is searched
for links before anything starts (`require_no_links`), files are appended to without following links
(`open_without_links`), an atomic write replaces whatever has the file's name (`atomic_write`), and `remove` removes a
link, not its target. Libraries write into folders that were created just before. Nothing here guards against a person
who changes the folder at the same time and has the rights to do so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import IO, Any

from neftcli.errors import InputError, Problem

TEMPORARY = re.compile(r"\.(.+)\.neft-[0-9a-f]{8}")
"""Names that `temporary_name` returns, with the final name as a group; killed processes leave them behind."""
RECENT = 2.0
"""Seconds after a change of a file in which its times may not show the next one."""
_hashes: dict[tuple[int, ...], str] = {}
"""SHA-256 of files, by inode, size and times."""
STALE_AFTER = 3600.0
"""Seconds without a change after which a temporary file is stale."""
WRITABLE_BY_ALL = 0o002


def temporary_name(name: str) -> str:
    """Return a name for a file or folder until it gets its final name.

    The name contains "neft", since stale files with such names are removed: `.backup.20250101` is the user's.
    """
    return f".{name}.neft-{token_hex(4)}"


def require_short_name(path: Path, other: str) -> None:
    """Check that the file system allows a path, and a longer name beside it that is written first.

    Raises:
        OSError: The name or the path is too long.
    """
    for candidate in (path, path.with_name(other)):
        with suppress(FileNotFoundError):
            candidate.lstat()


def restrict_umask() -> None:
    """Let only the user and the group write files of this process, whatever umask it was started with."""
    os.umask(os.umask(0o077) | WRITABLE_BY_ALL)


def require_no_links(path: Path, *, allowed: tuple[Path, ...] = ()) -> None:
    """Check that `path` and everything below it are files and folders: no links, pipes or devices.

    Args:
        path: A file or folder that will be written to; it need not exist.
        allowed: Paths below it that may be links.

    Raises:
        InputError: One of them is something else.
    """
    for item in (path, *_walk(path)):
        if item not in allowed:
            require_no_link(item)


def require_no_link(path: Path) -> None:
    """Check that `path` is a file or a folder, or doesn't exist.

    Raises:
        InputError: It is a link, or something that can't be written like a file.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # it doesn't exist, or was removed meanwhile
        return
    hint = f"rm {shlex.quote(str(path))}"
    if stat.S_ISLNK(mode):
        hint += "    removes the link, not its target"
        raise InputError(Problem(f"{path}: neft does not write through links", f"a link to {path.readlink()}", hint))
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        hint = "use a different path; this one is a device, a pipe or a socket"
        raise InputError(Problem(f"{path}: neft writes only to files and folders", stat.filemode(mode), hint))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):  # doesn't follow links
        for name in (*folders, *files):
            yield Path(parent, name)


def open_without_links(path: Path, mode: str, errors: str = "strict") -> IO[Any]:
    """Open a file to change it or to append to it; text as UTF-8.

    Raises:
        OSError: It is a link, or not writable.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)  # permissions by the umask

    if "b" in mode:
        return open(path, mode, opener=opener)
    return open(path, mode, encoding="utf-8", errors=errors, opener=opener)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file by a temporary file in its folder, fsync, and a rename; text as UTF-8."""
    temporary = path.with_name(temporary_name(path.name))
    with temporary.open("xb") as file:  # permissions by the umask
        try:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def fsync_path(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link if it exists.

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
    """Remove whatever is at `path`; rename it to a temporary name if a part of it can't be removed.

    Raises:
        OSError: It can't be renamed.
    """
    if not remove_if_possible(path):
        path.rename(path.with_name(temporary_name(path.name)))


def make_empty_folder(folder: Path) -> None:
    """Replace whatever is at `folder` by an empty folder, for a library to write into."""
    clear_path(folder)
    folder.mkdir()


def link_or_copy_folder(source: Path, target: Path) -> None:
    """Make `target` a folder with the files of `source`: the same files if the file system has hard links, else copies.

    Neither may be changed in place afterwards, only replaced.
    """

    def link_or_copy(file: str, name: str) -> None:
        try:
            os.link(file, name)
        except OSError:
            shutil.copyfile(file, name)

    clear_path(target)
    shutil.copytree(source, target, copy_function=link_or_copy)


def remove_stale_files(folder: Path) -> None:
    """Remove temporary files of killed processes from `folder`, and what `clear_path` could not remove."""
    for path in folder.glob(".*"):
        with suppress(FileNotFoundError):
            if TEMPORARY.fullmatch(path.name) and is_stale(path):
                remove_if_possible(path)


def is_stale(path: Path) -> bool:
    """Return whether the last change is so long ago that no process writes to `path` any more."""
    return time.time() - path.lstat().st_mtime > STALE_AFTER


def escapes_folder(name: str) -> bool:
    """Return whether a name that a file lists leads out of that file's folder.

    Only the name counts. Links are followed: whoever may create a link in the folder may copy the file into it as well,
    and model stores, DVC and the hub's cache consist of links.

    Args:
        name: A file's path relative to the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing, damaged or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256_once(path: Path) -> str:
    """Compute the SHA-256 of a file, only once in this process while its inode, size and times stay the same.

    A file that changed in the last seconds is hashed each time: its next change may get the same time.
    """
    status = path.stat()
    unchanged = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if time.time() - max(status.st_mtime, status.st_ctime) < RECENT:
        return file_sha256(path)
    if unchanged not in _hashes:
        _hashes[unchanged] = file_sha256(path)
    return _hashes[unchanged]


def count_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder: without following links, a hard link once."""
    total, seen = 0, set()
    for item in (path, *_walk(path)):
        try:
            status = item.lstat()
        except OSError:  # removed meanwhile
            continue
        if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            total += status.st_size
    return total


def format_bytes(number: float) -> str:
    """Format a size: 120 KiB, 3.2 MiB, 3.1 GiB."""
    if number < 2**20:
        return f"{number / 2**10:.0f} KiB"
    return f"{number / 2**20:.1f} MiB" if number < 2**30 else f"{number / 2**30:.1f} GiB"
