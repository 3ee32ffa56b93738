"""Folder of a sweep: find it, lock it, write its recipe, and explain why a sweep ended early."""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import DISK_FULL, InputError, Interrupted, NeftError, Problem
from neftcli.recipe.trust import require_typed_trust
from neftcli.runs.directory import CELLS, LOCK, RECIPE, RECORD, find_run, find_sweep, list_sweeps
from neftcli.system.files import atomic_write, remove, remove_stale_files, require_no_links
from neftcli.system.locks import acquire_lock
from neftcli.system.paths import closest_path, exists, expand_home

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer

SAME_COMMAND = "run the same command again"
START = "neft sweep-alpha --recipe quickstart    starts one"
PLOTS = "plots"
SWEEP = "sweep.json"
WORKERS_LOG = "workers.log"
BEST, NEW_BEST = "best", ".best"
"""The only links of a sweep, to its recommended run: replaced and never followed."""
FIXABLE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EISDIR)
"""Errors of files that a person can fix; a missing file is a bug in neft."""


def require_unlocked(folder: Path) -> None:
    """Check that no other sweep runs in the folder, before rows are read; `lock_sweep` decides.

    Raises:
        InputError: Another sweep holds the lock.
    """
    if (folder / LOCK).is_file():
        with lock_sweep(folder):
            pass


@contextmanager
def lock_sweep(folder: Path) -> Iterator[None]:
    """Create and lock a sweep's folder; if nothing is started, remove what was created and nothing else.

    Raises:
        InputError: Another sweep runs in it, it can't be written, it holds links to other
            places, or its file system has no locks.
    """
    from filelock import Timeout

    require_no_links(folder, allowed=(folder / BEST, folder / NEW_BEST))
    created: list[Path] = []
    try:
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(folder / LOCK)
    except Timeout:
        raise InputError(
            Problem(f"{folder}: another sweep is running in this folder", "", "wait, or --name for another folder")
        ) from None
    except OSError as error:
        raise InputError(
            Problem(f"{folder} can't be written", error.strerror or str(error), "--output-dir FOLDER")
        ) from None
    try:
        for path in (folder, folder / PLOTS):
            remove_stale_files(path)
        yield
    except InputError:
        if folder in created and not any((folder / CELLS).glob("*")):
            remove(folder)
            with suppress(OSError):  # another program has written to a parent
                for parent in created[1:]:
                    parent.rmdir()
        raise
    finally:
        lock.release()


@contextmanager
def explain_interruption(folder: Path, resume: str) -> Iterator[None]:
    """Turn a second signal or an error of the disk into an error that says how to resume.

    Args:
        folder: Folder of the sweep.
        resume: Command that resumes it, once its recipe is in its folder.

    Raises:
        Interrupted: The sweep was stopped at once.
        NeftError: The disk is full, or the system refuses to read or write a file.
    """
    from neftcli.training.failures import is_disk_full

    try:
        yield
    except KeyboardInterrupt:
        hint = resume if find_sweep(str(folder)) else SAME_COMMAND
        raise Interrupted(Problem("stopped at once; finished cells are kept", hint=hint)) from None
    except OSError as error:
        full = is_disk_full(error)
        if not full and (error.errno not in FIXABLE_ERRORS or not error.filename):
            raise
        hint = resume if find_sweep(str(folder)) else SAME_COMMAND
        reason = f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror}"
        if full:
            message = "the disk is full; finished cells are kept"
            problem = Problem(message, reason, f"free some space, then {hint}", code=DISK_FULL)
        else:
            message = "a file can't be read or written; finished cells are kept"
            problem = Problem(message, reason, f"fix its permissions, then {hint}")
        raise NeftError(problem) from error


def resolve_sweep(name: str, option: str = "") -> Path:
    """Find the folder of a sweep by its path or name.

    Args:
        name: The path or name.
        option: Option that takes it, "--pilot"; empty for the argument of `neft sweep-alpha`.

    Raises:
        InputError: There is no such sweep; the error suggests the nearest one.
    """
    prefix = f"{option}: " if option else ""
    folder = find_sweep(name)
    if folder is not None:
        return folder
    if exists(expand_home(name) / LOCK) and not exists(expand_home(name) / RECORD):
        problem = "this sweep was stopped before it started"
        raise InputError(Problem(problem, name, "run the command that started it again"))
    run = find_run(name)
    parent = find_sweep(str(run.parent.parent)) if run is not None else find_sweep(f"{name}-sweep")
    nearest = str(parent) if parent is not None else closest_path(Path("runs") / name) or closest_path(Path(name))
    if nearest and find_sweep(nearest) is not None:
        command = f"{option or 'neft sweep-alpha'} {shlex.quote(nearest)}"
        raise InputError(Problem(f"{prefix}this is not a sweep", name, command, nearest))
    if run is not None:
        problem = "this is a run, not a sweep"
    elif os.path.isdir(name):  # unlike Path.is_dir it takes any text
        problem = "there is no sweep in this folder"
    else:
        problem = "there is no such sweep"
    hint = f"{option} runs/NAME-sweep    a finished sweep" if option else START
    if sweeps := list_sweeps():
        hint = f"{option or 'neft sweep-alpha'} SWEEP    in runs/: {sweeps}"
    raise InputError(Problem(f"{prefix}{problem}", name or "an empty name", hint))


def load_layers(folder: Path, typed: Sequence[Layer], *, resume: bool) -> tuple[list[Layer], Path | None]:
    """Return the recipe of a sweep with the typed options, and the folder that their relative paths start from.

    Args:
        folder: Folder of the sweep.
        typed: Layers of the command line; their paths start from the current folder.
        resume: The sweep is resumed, so the paths stay as they are written; otherwise a new sweep starts from its
            recipe, and they are rewritten for the current folder.

    Returns:
        The layers, and None if their paths start from the current folder.

    Raises:
        InputError: The recipe would run a model's own code without the option that allows it.
    """
    from neftcli.recipe.loading import read_recipe_layers, resolve_recipe
    from neftcli.recipe.relative_paths import find_relative_paths, rewrite_layer

    file = folder / RECIPE
    paths = find_relative_paths(file) if resume else None
    working_folder = None
    if paths is not None and paths.folders and not paths.folders[0].samefile(os.path.curdir):
        working_folder = paths.folders[0]
        typed = [rewrite_layer(layer, paths.to_run_folder) for layer in typed]
    layers = [*read_recipe_layers(str(file), as_written=resume), *typed]
    command = shlex.join(("neft", "sweep-alpha", str(folder)))
    require_typed_trust(resolve_recipe(layers), typed, file, command)
    return layers, working_folder


def write_recipe(folder: Path, base: Recipe) -> None:
    """Write the recipe of a sweep, with the folder that its relative paths start from."""
    from neftcli.recipe.loading import to_yaml
    from neftcli.recipe.relative_paths import PATHS, relative_paths_record
    from neftcli.training.inputs import local_paths

    paths = relative_paths_record(folder, Path.cwd(), local_paths(base))
    atomic_write(folder / PATHS, json.dumps(paths, indent=2) + "\n")
    atomic_write(folder / RECIPE, to_yaml(base))
    (folder / CELLS).mkdir(exist_ok=True)  # a folder with a recipe and cells/ is a sweep
