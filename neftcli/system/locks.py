"""File locks that keep two processes from using the same folder; a killed process releases its locks."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem

if TYPE_CHECKING:
    from filelock import BaseFileLock

UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""Numbers of errors of a file system without flock, such as Lustre mounted without it."""
OTHER_FOLDER = "--output-dir FOLDER"


class LocksUnsupportedError(InputError):
    """The file system has no file locks."""

    code = "no_locks"


def acquire_lock(path: Path, *, wait: bool = False, other_folder: str = OTHER_FOLDER) -> BaseFileLock:
    """Lock a file, which is created if it is missing.

    Args:
        path: The file.
        wait: Wait until another process releases the lock.
        other_folder: What to type for a folder on a different file system.

    Raises:
        Timeout: By filelock: another process holds the lock, and `wait` is False.
        LocksUnsupportedError: The file system has no locks.
        OSError: The file can't be created or opened.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    lock = FileLock(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it becomes a SoftFileLock, which a killed process would never release
            lock.acquire(timeout=0)
    except Timeout:
        if isinstance(lock, SoftFileLock):
            raise _unsupported(path, errno.ENOSYS, other_folder) from None
        if not path.exists():  # filelock also waits for a file that can't be created, such as one in /proc
            path.touch()
        if not wait:
            raise
        lock.acquire()
    except NotImplementedError:  # filelock before its fallback to SoftFileLock
        raise _unsupported(path, errno.ENOSYS, other_folder) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        raise _unsupported(path, error.errno, other_folder) from None
    if isinstance(lock, SoftFileLock):
        lock.release()
        raise _unsupported(path, errno.ENOSYS, other_folder)
    return lock


@contextmanager
def hold_lock(path: Path, *, wait: bool = False, other_folder: str = OTHER_FOLDER) -> Iterator[None]:
    """Hold a lock within the block, as `acquire_lock` acquires it."""
    lock = acquire_lock(path, wait=wait, other_folder=other_folder)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on a file; False if the file is missing or a link, or can't be opened.

    Nothing is written. The lock is held for an instant to find out.
    """
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _unsupported(path: Path, number: int, other_folder: str) -> LocksUnsupportedError:
    message = f"{path.parent}: this file system does not support file locks, which neft needs"
    hint = f"{other_folder} on a local disk or NFS; Lustre has locks if it is mounted with the option flock"
    return LocksUnsupportedError(Problem(message, os.strerror(number), hint))
