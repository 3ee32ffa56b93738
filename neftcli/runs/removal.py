"""Remove runs and sweeps: checked first, renamed in one step, and then deleted without following links."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from neftcli.errors import Checks, InputError, Interrupted, NeftError, Problem, RunLockedError
from neftcli.events import Observer, RunsRemoved, RunSummary
from neftcli.runs.catalog import EVALUATION_FOLDER, cell_folders, summarize, unknown_run
from neftcli.runs.directory import CELLS, LOCK, REMOVED, find_sweep
from neftcli.system.files import TEMPORARY, count_bytes, format_bytes, remove_if_possible, temporary_name
from neftcli.system.locks import LocksUnsupportedError, acquire_lock, is_locked
from neftcli.system.paths import exists, expand_home


def plan_removal(names: Sequence[str], parent: Path) -> list[RunSummary]:
    """Check that each name is a run or a sweep that can be removed, and summarise them.

    Raises:
        InputError: With all reasons why not; nothing was removed.
    """
    summaries: list[RunSummary] = []
    checks = Checks()
    for name in dict.fromkeys(names):
        with checks:
            folder = _find_folder(name, parent)
            summary = summarize(folder)
            _require_removable(summary, name)
            if not any(os.path.samefile(folder, earlier.path) for earlier in summaries):
                summaries.append(summary)
    checks.raise_errors()
    return summaries


def remove_runs(runs: Sequence[RunSummary], observer: Observer) -> None:
    """Remove runs and sweeps, report those that are gone, and finish removals that were stopped.

    Each folder gets a hidden name before its files are deleted, so no half of a run is left under its name.

    Raises:
        NeftError: A process works in one of them, or it can't be renamed or deleted; the others are removed.
        Interrupted: Stopped by Ctrl-C.
    """
    removed: list[str] = []
    freed = 0
    problems: list[Problem] = []
    for run in runs:
        path = Path(run.path)
        try:
            size = count_bytes(path)
            hidden = _hide(path)
            removed.append(run.path)
            remove_if_possible(hidden)
        except NeftError as error:
            problems += error.problems
            continue
        except KeyboardInterrupt:
            hint = f"neft runs rm {shlex.quote(run.path)}    if it is still there; the next neft train deletes the rest"
            raise Interrupted(Problem("stopped while removing", run.path, hint)) from None
        left = count_bytes(hidden)
        freed += size - left
        if exists(hidden):
            quoted = shlex.quote(str(hidden))
            message = f"{path}: some of its files can't be deleted"
            hint = f"chmod -R u+rwx {quoted} && rm -r {quoted}"
            problems.append(Problem(message, f"{format_bytes(left)} in {hidden}", hint))
    if removed:
        observer.notify(RunsRemoved(tuple(removed), freed))
    if problems:
        raise NeftError(*problems) if removed else InputError(*problems)
    for parent in dict.fromkeys(Path(run.path).parent for run in runs):
        _finish_earlier_removals(parent)


def _find_folder(name: str, parent: Path) -> Path:
    """Find a folder by its path or its name below `parent`, without following a link.

    Raises:
        InputError: There is none, or it is a link.
    """
    with suppress(OSError, ValueError):  # a name that no file system has
        has_name = Path(name).name not in ("", "..")  # unlike the current folder, or a parent of something
        for path in (expand_home(name), parent / name) if has_name else ():
            if path.is_symlink():
                hint = f"rm {shlex.quote(str(path))}    removes the link, not its target"
                raise InputError(Problem("this is a link, and neft follows none", f"{path} -> {path.readlink()}", hint))
            if path.is_dir():
                return path
    raise unknown_run(name, parent)


def _require_removable(run: RunSummary, name: str) -> None:
    """Check that a folder is a run or a sweep, and that nobody needs it now.

    Raises:
        InputError: It is neither, or is a part of a sweep, or is in use.
    """
    path = Path(run.path)
    if run.kind == "other":
        hint = f"rm -r {shlex.quote(run.path)}    if it is yours"
        raise InputError(Problem("this is neither a run nor a sweep, so neft does not remove it", name, hint))
    sweep = path.absolute().parent.parent
    if path.absolute().parent.name == CELLS and find_sweep(str(sweep)) is not None:
        hint = f"neft runs rm {shlex.quote(os.path.relpath(sweep))}    removes the whole sweep"
        raise InputError(Problem("this run is a cell of a sweep, which would train it again", name, hint))
    if Path.cwd().is_relative_to(path.resolve()):
        hint = f"cd {shlex.quote(str(path.resolve().parent))}"
        raise InputError(Problem("the current folder is in this run", name, hint))
    for lock in _lock_files(path):
        if is_locked(lock):
            raise _in_use(path, lock)


def _lock_files(path: Path) -> Iterator[Path]:
    """Yield the files that processes lock while they train or evaluate a run, or a sweep and its cells."""
    for folder in (path, *cell_folders(path)):
        for locked in (folder, folder / EVALUATION_FOLDER):
            if not folder.is_symlink() and not locked.is_symlink() and locked.is_dir():
                yield locked / LOCK


def _in_use(path: Path, lock: Path) -> RunLockedError:
    work = "evaluates" if lock.parent.name == EVALUATION_FOLDER else "trains"
    message = f"{path}: another process {work} it, so it is not removed"
    return RunLockedError(Problem(message, hint="wait until it has ended, or stop it"))


def _hide(path: Path) -> Path:
    """Give a folder a hidden name while no process works in it.

    Raises:
        InputError: A process works in it, or it can't be renamed.
    """
    from filelock import Timeout

    hidden = path.with_name(temporary_name(path.name + REMOVED))
    with ExitStack() as locks:
        for lock in _lock_files(path):
            if lock.is_symlink():  # neft trains in no folder with links
                continue
            try:
                locks.callback(acquire_lock(lock).release)
            except Timeout:
                raise _in_use(path, lock) from None
            except (LocksUnsupportedError, PermissionError):  # nobody can train here
                continue
        try:
            path.rename(hidden)
        except OSError as error:
            hint = f"ls -ld {shlex.quote(str(path.parent))}    shows who may write to it"
            message = f"{path} can't be removed"
            raise InputError(Problem(message, error.strerror or str(error), hint)) from None
    return hidden


def _finish_earlier_removals(parent: Path) -> None:
    """Delete what removals that were stopped have left in a folder."""
    with suppress(OSError):
        for path in parent.iterdir():
            temporary = TEMPORARY.fullmatch(path.name)
            if temporary and temporary[1].endswith(REMOVED) and exists(path) and not path.is_symlink():
                remove_if_possible(path)
