"""The folder of a run, from its creation to its end.

A run starts in a hidden folder that gets its final name once it holds record and recipe: a kill leaves either no run or
a run that can be resumed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from neftcli.errors import InputError, Problem, RunLockedError
from neftcli.events import Evaluated
from neftcli.recipe import relative_paths
from neftcli.runs.schemas import MetricsLine, Record, parse_json, read_jsonl
from neftcli.system.files import (
    TEMPORARY,
    atomic_write,
    clear_path,
    fsync_path,
    is_stale,
    link_or_copy_folder,
    make_empty_folder,
    open_without_links,
    remove,
    remove_if_possible,
    remove_stale_files,
    require_no_links,
    temporary_name,
)
from neftcli.system.locks import acquire_lock, hold_lock
from neftcli.system.paths import expand_home

SUGGESTED_LENGTH = 40  # alpha, seed and a number are appended
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
SUFFIX = re.compile(r"-a[0-9.e+-]+-s[0-9]+$")
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""Errors of renaming to an existing name."""
RECORD = relative_paths.RECORD
RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
LOCK = ".lock"
LOG = "train.log"
BEST_MODEL = "best"
"""Folder of the best weights so far, in a run and, with one folder between, in its checkpoints."""
FIRST_FILES = (LOCK, RECORD, RECIPE, LOG)
"""Files of a run whose folder does not have its final name yet."""
CELLS = "cells"
"""Folder of a sweep's runs."""
STOPPED = ("preempted", "interrupted")
"""Statuses of a run that a signal has stopped."""
REMOVED = ".removed"
"""Ending of a run's name while it is removed, within a temporary name."""
MAX_LISTED = 8
"""Names in a message that lists runs or sweeps."""
TRAIN_AGAIN = "run `neft train` again, or use the folder of a finished run"


def find_run(name: str, parent: Path = Path("runs")) -> Path | None:
    """Find the folder of a run by its path, its name below `parent`, or its model's path; None if it is missing."""
    path = expand_home(name)
    try:
        candidates = [path, parent / path]
        if path.resolve().name == "model":
            candidates.append(path.parent)
        run = next((folder for folder in candidates if (folder / RECORD).is_file()), None)
    except (OSError, ValueError, RuntimeError):  # no file system allows this name, or links form a loop
        return None
    if run is None:
        return None
    while run.is_symlink():  # a sweep's `best` is a link to a run, and has that run's name
        run = Path(os.path.normpath(run.parent / run.readlink()))
    return run if run.name else run.resolve()  # "." has no name of its own


def find_sweep(name: str, parent: Path = Path("runs")) -> Path | None:
    """Find the folder of a sweep by its path or its name below `parent`; None if it is missing."""
    path = expand_home(name)
    try:
        for folder in (path, parent / path):
            if (folder / RECIPE).is_file() and (folder / CELLS).is_dir():
                return folder
    except (OSError, ValueError):  # no file system allows this name
        return None
    return None


def list_runs(parent: Path = Path("runs")) -> str:
    """List the runs below `parent` with their statuses, the newest first: "a-a5-s0 (finished), b-a5-s0 (preempted)"."""
    return _list_names(record.parent for record in _newest(parent, RECORD))


def list_sweeps(parent: Path = Path("runs")) -> str:
    """List the sweeps below `parent`, the newest first."""
    return _list_names(cells.parent for cells in _newest(parent, CELLS) if find_sweep(str(cells.parent)) is not None)


def _newest(parent: Path, name: str) -> list[Path]:
    """Return the files and folders of a name in the folders of `parent`, the newest first."""
    with suppress(OSError):
        return sorted(parent.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return []


def _list_names(folders: Iterable[Path]) -> str:
    names = []
    for folder in folders:
        if NAME.fullmatch(folder.name):
            status = _status(folder / RECORD)
            names.append(f"{folder.name} ({status})" if status else folder.name)
    return join_names(names)


def join_names(names: Sequence[str]) -> str:
    """Join the names of runs for a message; further ones are counted."""
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _status(record: Path) -> str:
    """Return the status in a record; empty if there is none."""
    with suppress(OSError, ValueError):
        return str(parse_json(record.read_bytes(), Record)["status"])
    return ""


def require_writable(folder: Path) -> None:
    """Check that `folder` can be created, or written to if it exists; leave nothing in it.

    Raises:
        InputError: It can't be created or written to.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with TemporaryDirectory(dir=nearest):
            pass
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError | ValueError) -> InputError:
    """Return an error that explains why runs can't be written into a folder."""
    reason = getattr(error, "strerror", None) or str(error)
    for path in (folder, *folder.absolute().parents):
        if path.is_file():
            reason = f"{path} is a file"
        elif path.is_symlink() and not path.exists():
            reason = f"{path} is a link to {path.readlink()}, which does not exist"
    return InputError(Problem(f"output_dir: {folder} can't be written", reason, "--output-dir FOLDER"))


class RunDirectory:
    """Folder of a run.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, created_parents: Sequence[Path] = ()) -> None:
        self.path = path
        self._created_parents = created_parents

    @classmethod
    def create(cls, parent: Path, name: str) -> RunDirectory:
        """Create a hidden folder in `parent` for a run that `assign_name` names later.

        Stale hidden folders of killed processes are removed.

        Raises:
            InputError: The name is invalid, or the parent can't be written.
        """
        require_valid_name(name)
        try:
            created = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            _remove_unnamed_runs(parent)
            path = parent / temporary_name(name)
            path.mkdir()
        except (OSError, ValueError) as error:
            raise _unwritable(parent, error) from None
        return cls(path, created)

    def assign_name(self, parent: Path, name: str) -> None:
        """Rename the folder, which is not empty, to `parent/name`, or to `parent/name-2` and so on if that exists."""
        for path in self.candidate_paths(parent, name):
            if os.path.lexists(path):
                continue
            try:
                self.path.rename(path)
            except OSError as error:
                if error.errno in TAKEN:  # another process took it
                    continue
                raise
            self.path = path
            fsync_path(parent)
            return

    def remove(self) -> None:
        """Remove the folder, and parents that were created with it and are empty."""
        with suppress(OSError):
            remove(self.path)
            for folder in self._created_parents:
                folder.rmdir()

    @staticmethod
    def candidate_paths(parent: Path, name: str) -> Iterator[Path]:
        """Yield the paths that a run of this name may have, without end: NAME, NAME-2, NAME-3, ..."""
        yield parent / name
        yield from (parent / f"{name}-{number}" for number in count(2))

    def stopped_namesake(self, parent: Path, name: str) -> Path | None:
        """Return the run that has the name `parent/name`, if it is another one and was stopped; else None."""
        first = next(self.candidate_paths(parent, name))
        return first if first != self.path and _status(first / RECORD) in STOPPED else None

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open a run that has a model.

        Raises:
            InputError: Its record can't be read, or it has no model.
        """
        directory = cls(path)
        status = directory.record()["status"]
        if not (path / RECIPE).is_file():
            raise InputError(Problem(f"{path}: this run has no recipe.yaml", f"status {status}", TRAIN_AGAIN))
        if not any(directory.model.rglob("*.safetensors")):  # an index may name a subfolder
            resume = f"neft train --resume {shlex.quote(str(path))}    to finish it"
            hint = TRAIN_AGAIN if status == "finished" else resume
            raise InputError(Problem(f"{path}: this run has no model", f"status {status}", hint))
        return directory

    @property
    def model(self) -> Path:
        """Folder of the tuned weights or the adapter."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Folder of the best weights so far, during training with `training.keep: best`."""
        return self.path / BEST_MODEL

    @property
    def log(self) -> Path:
        """Log file with the output of the libraries."""
        return self.path / LOG

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run, so that no other process trains it at the same time; a killed process releases its lock.

        Raises:
            RunLockedError: Another process holds the lock.
            InputError: The folder contains links or can't be written, or its file system has no locks.
        """
        from filelock import Timeout

        require_no_links(self.path)
        try:
            lock = acquire_lock(self.path / LOCK)
        except Timeout:
            raise RunLockedError(
                Problem(f"{self.path}: another process is training this run", hint="wait until it has ended")
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            hint = f"ls -ld {shlex.quote(str(self.path))}    shows who may write to it"
            raise InputError(Problem(f"{self.path} can't be written", reason, hint)) from None
        try:
            remove_stale_files(self.path)
            yield
        finally:
            remove_if_possible(self.path / LOCK)  # by its current name: the folder may have been renamed
            lock.release()

    @contextmanager
    def replace_model(self, target: Path | None = None) -> Iterator[Path]:
        """Yield a folder to save the model in; it replaces `target`, by default `model/`, at the end of the block."""
        target = target or self.model
        partial = self.path / f"{target.name}.partial"
        make_empty_folder(partial)
        try:
            yield partial
            permissions = partial.stat().st_mode & 0o666  # by the umask; safetensors creates private files
            for file in partial.iterdir():
                file.chmod(permissions)
                fsync_path(file)
            fsync_path(partial)
        except BaseException:
            remove_if_possible(partial)
            raise
        clear_path(target)
        partial.rename(target)
        fsync_path(self.path)

    def promote_best(self) -> None:
        """Make the best weights the run's model."""
        clear_path(self.model)
        self.best.rename(self.model)
        fsync_path(self.path)

    def restore_best(self, checkpoint: Path) -> None:
        """Restore the best weights that a verified checkpoint holds, if it holds any."""
        saved = checkpoint / BEST_MODEL / BEST_MODEL
        if saved.is_dir():
            link_or_copy_folder(saved, self.best)

    def remove_best(self) -> None:
        """Remove the best weights: a later step is better, or the run starts over."""
        clear_path(self.best)

    def clear_results(self) -> None:
        """Remove the measurements and the model of a run that starts over."""
        clear_path(self.model)
        clear_path(self.best)
        for name in (METRICS, SAMPLES):
            remove(self.path / name)

    def rewind(self, step: int, evaluated: int) -> int:
        """Remove what was measured and saved after a checkpoint; the run repeats it.

        Args:
            step: Step of the checkpoint.
            evaluated: Step of its last evaluation.

        Returns:
            Number of damaged lines that were removed from metrics.jsonl, without the incomplete last line of a killed
            process.
        """
        kept, damaged = [], 0
        for line, row in read_jsonl(self.path / METRICS, MetricsLine):
            if row is None:
                damaged += line.endswith("\n")
            elif row["step"] <= (evaluated if row["event"] == Evaluated.id else step):
                kept.append(line)
        self.write_text(METRICS, "".join(kept))
        remove(self.path / SAMPLES)
        clear_path(self.model)
        clear_path(self.best)
        return damaged

    def clean_up_finished(self) -> None:
        """Remove the checkpoints of a finished run that was killed before it could remove them."""
        with suppress(InputError), self.lock():  # not writable, or locked
            self.remove_checkpoints()

    def remove_checkpoints(self) -> bool:
        """Remove the checkpoints as far as possible, and return whether all are gone."""
        return remove_if_possible(self.checkpoints)

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        atomic_write(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        self.write_text(
            name, json.dumps(replace_non_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def record(self) -> Record:
        """Read `run.json`.

        Raises:
            InputError: It is missing or damaged.
        """
        file = self.path / RECORD
        try:
            return parse_json(file.read_bytes(), Record)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                Problem(f"{file}: this is not a valid record of a run", reason, self._retrain_command())
            ) from None

    def _retrain_command(self) -> str:
        """Return the command that trains a lost run again."""
        recipe = self.path / RECIPE
        if not recipe.is_file():
            return TRAIN_AGAIN
        return f"neft train --recipe {shlex.quote(str(recipe))}    trains it again in a new folder"

    def evaluations(self) -> list[MetricsLine]:
        """Read the evaluations in `metrics.jsonl`, without damaged lines."""
        rows = (row for _, row in read_jsonl(self.path / METRICS, MetricsLine))
        return [row for row in rows if row is not None and row["event"] == Evaluated.id]

    def append_line(self, name: str, content: dict[str, Any]) -> None:
        """Append an object as a line to a .jsonl file."""
        with open_without_links(self.path / name, "a") as file:
            file.write(format_json_line(content))


def _remove_unnamed_runs(parent: Path) -> None:
    """Remove stale hidden folders of runs that were killed before they got their names, or while they were removed."""
    for folder in parent.glob(".*/"):
        with suppress(OSError):  # another process removed it
            temporary = TEMPORARY.fullmatch(folder.name)
            if temporary and temporary[1].endswith(REMOVED) and not folder.is_symlink():
                remove_if_possible(folder)
            elif temporary and _has_only_first_files(folder) and is_stale(folder):
                _remove_if_unlocked(folder)


def remove_incomplete_runs(parent: Path) -> None:
    """Remove hidden folders and folders without a record that killed processes left of runs.

    Only folders that contain nothing but a run's first files are removed; anything else may be the user's. Call this
    while no process creates runs in `parent`. Folders that a process has locked stay.
    """
    for folder in parent.glob("*/"):
        is_unnamed = TEMPORARY.fullmatch(folder.name) is not None
        with suppress(OSError):
            if (is_unnamed or not (folder / RECORD).exists()) and _has_only_first_files(folder):
                _remove_if_unlocked(folder)


def _has_only_first_files(folder: Path) -> bool:
    """Return whether a folder contains nothing but files of a run without its name, and temporary files of these."""
    if folder.is_symlink():
        return False
    for path in folder.iterdir():
        temporary = TEMPORARY.fullmatch(path.name)
        name = temporary[1] if temporary else path.name
        if name not in FIRST_FILES or path.is_symlink() or path.is_dir():
            return False
    return True


def _remove_if_unlocked(folder: Path) -> None:
    from filelock import Timeout

    with suppress(Timeout), hold_lock(folder / LOCK):
        remove(folder)


class ReadOnlyRunDirectory(RunDirectory):
    """Folder of a run in a process that is not the main process: it is read, and every change is left out."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Do nothing: the main process has the lock."""
        yield

    def assign_name(self, parent: Path, name: str) -> None:
        """Do nothing: the main process renames the folder, and broadcasts the path."""

    def remove(self) -> None:
        """Do nothing."""

    def clear_results(self) -> None:
        """Do nothing."""

    def rewind(self, step: int, evaluated: int) -> int:
        """Do nothing."""
        return 0

    def promote_best(self) -> None:
        """Do nothing: the main process renames the folder."""

    def restore_best(self, checkpoint: Path) -> None:
        """Do nothing: the main process restores them."""

    def remove_best(self) -> None:
        """Do nothing: the main process removes them."""

    def remove_checkpoints(self) -> bool:
        """Do nothing: the main process removes them."""
        return True

    def write_text(self, name: str, text: str) -> None:
        """Do nothing."""

    def append_line(self, name: str, content: dict[str, Any]) -> None:
        """Do nothing."""


def require_valid_name(name: str) -> None:
    """Check the name of a run.

    Raises:
        InputError: It is too long, or has characters that folder names should not have.
    """
    if not NAME.fullmatch(name):
        message = (
            "name: a run's name has at most 64 letters, digits, dots, underscores and hyphens, no dot or hyphen first"
        )
        raise InputError(Problem(message, re.sub(SUFFIX, "", name), f"--name {_valid_name(name)}"))


def _valid_name(name: str) -> str:
    """Return a valid name similar to `name`, without the suffix of alpha and seed, which is appended anyway."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(SUFFIX, "", name)).strip(".-")[:SUGGESTED_LENGTH] or "my-run"


def format_json_line(content: dict[str, Any]) -> str:
    """Return an object as a line of a .jsonl file."""
    return json.dumps(replace_non_finite(content), ensure_ascii=False, allow_nan=False) + "\n"


def replace_non_finite(value: Any) -> Any:
    """Return a value for JSON, with null in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
