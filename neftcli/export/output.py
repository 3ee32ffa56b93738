"""Output of `neft merge` and `neft export`: a new file or folder, hidden until it is complete."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neftcli.errors import DISK_FULL, InputError, Interrupted, NeftError, Problem, first_line
from neftcli.system.files import (
    format_bytes,
    fsync_path,
    remove_if_possible,
    remove_stale_files,
    require_no_link,
    require_short_name,
    temporary_name,
)
from neftcli.system.paths import expand_home
from neftcli.training.failures import is_disk_full


class ExportError(NeftError):
    """A run could not be merged or exported; nothing was written."""

    code = "export"


def require_new_output(name: str, *, folder: bool) -> Path:
    """Return the path for a new file or folder; a folder may exist if it is empty.

    Args:
        name: As typed after --out.
        folder: It is a folder, not a file.

    Raises:
        InputError: Something is there already, or it can't be written.
    """
    path = expand_home(name)
    try:
        require_no_link(path)
        if os.path.lexists(path) and not (folder and path.is_dir() and not any(path.iterdir())):
            raise _taken(path, folder=folder)
        parent = path.absolute().parent
        nearest = next(part for part in (parent, *parent.parents) if part.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(Problem(f"--out: {nearest} can't be written to", name, "--out PATH    in another folder"))
        require_short_name(path, temporary_name(path.name))
    except (OSError, ValueError) as error:  # a name that no file system has, or a folder without permission
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            Problem(f"--out: {path} can't be written", reason, "--out PATH    in another folder")
        ) from None
    return path


def _taken(path: Path, *, folder: bool) -> InputError:
    """Return the error for an output path that is taken."""
    if folder and path.is_dir():
        files = sorted(item.name for item in path.iterdir())
        got = ", ".join(files[:4]) + (", ..." if len(files) > 4 else "")
        return InputError(Problem(f"--out: {path} is not empty", got, f"--out {shlex.quote(f'{path}-2')}"))
    kind = "a folder" if path.is_dir() else "a file"
    other = path.with_name(f"{path.stem}-2{path.suffix}")
    return InputError(Problem(f"--out: {path} exists already", kind, f"--out {shlex.quote(str(other))}"))


def require_output_space(path: Path, needed: int) -> None:
    """Check that the disk of an output path has space.

    Args:
        path: The output, which need not exist.
        needed: Bytes that will be written.

    Raises:
        InputError: There is less space.
    """
    nearest = next(part for part in path.absolute().parents if part.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise InputError(
            Problem(
                f"--out: the disk has no space for {path}",
                f"{format_bytes(free)} are free, {format_bytes(needed)} are needed",
                "make room, or --out PATH on another disk",
                code=DISK_FULL,
            )
        )


@contextmanager
def hidden_output(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a hidden path beside `path` to write to; it gets the name `path` at the end of the block.

    If the block fails or is stopped, nothing stays, not even parent folders that were created.

    Args:
        path: The output, from `require_new_output`.
        folder: Create a folder; else the block creates the file.
    """
    created = [part for part in path.absolute().parents if not part.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_files(path.parent)
    hidden = path.with_name(temporary_name(path.name))
    try:
        if folder:
            hidden.mkdir()
        yield hidden
        _make_durable(hidden)
        if folder and path.is_dir():
            path.rmdir()  # fails unless it is still empty
        if os.path.lexists(path):
            raise _taken(path, folder=folder)
        hidden.rename(path)
    except BaseException:
        remove_if_possible(hidden)
        for part in created:
            try:
                part.rmdir()
            except OSError:  # another process has written there
                break
        raise
    fsync_path(path.parent)


@contextmanager
def explain_failures(path: Path) -> Iterator[None]:
    """Explain a stop and a full disk within the block, in which nothing gets the name `path`.

    Raises:
        Interrupted: The block was stopped by a signal.
        ExportError: The disk is full.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(Problem("stopped; nothing was written", hint="run the same command again")) from None
    except Exception as error:
        if isinstance(error, NeftError) or not is_disk_full(error):
            raise
        hint = "make room, or --out PATH on another disk"
        raise ExportError(
            Problem(f"{path}: the disk is full; nothing was written", first_line(error), hint, code=DISK_FULL)
        ) from error


def _make_durable(hidden: Path) -> None:
    """Give the files the permissions of the umask (safetensors creates private ones), and wait for the disk."""
    paths = sorted(hidden.rglob("*")) if hidden.is_dir() else [hidden]
    umask = os.umask(0)
    os.umask(umask)
    for file in paths:
        if file.is_file():
            file.chmod(0o666 & ~umask)
        fsync_path(file)
    fsync_path(hidden)


def total_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
