"""A run's folder, from its beginning to its end.

A run is begun in a hidden folder beside its own, which gets its name when record and recipe are in it: a kill leaves
either no run or one that can be resumed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from neftcli.errors import InputError, Problem
from neftcli.events import Evaluated
from neftcli.recipe import relative_paths
from neftcli.runs.schemas import MetricsLine, Record, lines, parse
from neftcli.system.files import (
    TEMPORARY,
    atomic_write,
    clear_path,
    fsync_path,
    is_stale,
    make_empty_folder,
    open_without_links,
    remove,
    remove_if_possible,
    remove_stale_files,
    require_no_links,
    temporary_name,
)
from neftcli.system.paths import expand_home

SUGGESTED = 40  # alpha, seed and a number still have to fit behind
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
SUFFIX = re.compile(r"-a[0-9.e+-]+-s[0-9]+$")
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""Errors of a rename to a name that is taken."""
RECORD = relative_paths.RECORD
RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
LOCK = ".lock"
LOG = "train.log"
BEFORE_NAMING = (LOCK, RECORD, RECIPE, LOG)
"""Files of a run whose folder has not got its final name."""
CELLS = "cells"
"""Folder of a sweep's runs."""
TRAIN_AGAIN = "neft train    again, or the folder of a run that finished"


def find_run(name: str, parent: Path = Path("runs")) -> Path | None:
    """Find the folder of a run: its path, its name below `parent`, or the path of its model; None if there is none."""
    path = expand_home(name)
    try:
        whole = path.resolve()
        folders = [path, parent / path, *([path.parent] if whole.name == "model" else [])]
        found = next((place for place in folders if (place / RECORD).is_file()), None)
    except (OSError, ValueError):  # no file system would have this name
        return None
    while found is not None and found.is_symlink():  # a sweep's `best` has the name of the run that it points to
        found = Path(os.path.normpath(found.parent / found.readlink()))
    return found.resolve() if found is not None and not found.name else found  # "." has no name of its own


def find_sweep(name: str, parent: Path = Path("runs")) -> Path | None:
    """Return the folder of a sweep: its path, or its name below `parent`; None if there is none."""
    path = expand_home(name)
    try:
        folders = (path, parent / path)
        return next((place for place in folders if (place / RECIPE).is_file() and (place / CELLS).is_dir()), None)
    except (OSError, ValueError):  # no file system would have this name
        return None


def require_writable(folder: Path) -> None:
    """Check that `folder` can be created, or written to if it exists; leaves nothing in it.

    Raises:
        InputError: It can't.
    """
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with TemporaryDirectory(dir=nearest):
            pass
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError | ValueError) -> InputError:
    """Explain why runs can't be written into a folder."""
    reason = getattr(error, "strerror", None) or str(error)
    for place in (folder, *folder.absolute().parents):
        if place.is_file():
            reason = f"{place} is a file"
        elif place.is_symlink() and not place.exists():
            reason = f"{place} is a link to {place.readlink()}, which does not exist"
    return InputError(Problem(f"output_dir: {folder} can't be written", reason, "--output-dir FOLDER"))


class RunDirectory:
    """The folder of one run.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, made: Sequence[Path] = ()) -> None:
        self.path = path
        self._made = made  # the folders around it that came with it

    @classmethod
    def create(cls, parent: Path, name: str) -> RunDirectory:
        """Make a hidden folder in `parent` for a run that `assign_name` names, and remove those of killed ones.

        Raises:
            InputError: The name holds other characters than a folder should, or the parent can't be written.
        """
        require_name(name)
        try:
            made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            _clear_unborn(parent)
            path = parent / temporary_name(name)
            path.mkdir()
        except (OSError, ValueError) as error:
            raise _unwritable(parent, error) from None
        return cls(path, made)

    def assign_name(self, parent: Path, name: str) -> None:
        """Move the folder, which is not empty, to `parent/name`, or `parent/name-2` and so on if that is taken."""
        for path in self.candidate_paths(parent, name):
            if os.path.lexists(path):
                continue
            try:
                self.path.rename(path)
            except OSError as error:
                if error.errno in TAKEN:  # another process was faster
                    continue
                raise
            self.path = path
            fsync_path(parent)
            return

    def remove(self) -> None:
        """Remove the folder, and those around it that were made with it and hold nothing else."""
        with suppress(OSError):
            remove(self.path)
            for folder in self._made:
                folder.rmdir()

    @staticmethod
    def candidate_paths(parent: Path, name: str) -> Iterator[Path]:
        """Yield the paths that a run of this name may have: NAME, NAME-2 and so on, without end."""
        yield parent / name
        yield from (parent / f"{name}-{number}" for number in count(2))

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the run in the folder `path`, whose model was saved.

        Raises:
            InputError: Its record can't be read, or no model was saved.
        """
        directory = cls(path)
        status = directory.record()["status"]
        if not (path / RECIPE).is_file():
            raise InputError(Problem(f"{path}: this run has no recipe.yaml", f"status {status}", TRAIN_AGAIN))
        if not any(directory.model.glob("*.safetensors")):
            again = (
                f"neft train --resume {shlex.quote(str(path))}    to finish it" if status != "finished" else TRAIN_AGAIN
            )
            raise InputError(Problem(f"{path}: this run has no model", f"status {status}", again))
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
    def log(self) -> Path:
        """Output of the libraries."""
        return self.path / LOG

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run, so that no other process trains it at the same time; the lock of a killed process is free.

        Raises:
            InputError: Another process holds it, or it holds links, through which it would be written elsewhere.
        """
        from filelock import FileLock, Timeout

        require_no_links(self.path)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                Problem(f"{self.path}: another process is training this run", hint="wait until it has ended")
            ) from None
        except OSError as error:
            raise InputError(
                Problem(f"{self.path} can't be written", error.strerror or str(error), "a folder that can")
            ) from None
        try:
            remove_stale_files(self.path)
            yield
        finally:
            remove_if_possible(self.path / LOCK)  # it has its name by now
            lock.release()

    @contextmanager
    def replace_model(self) -> Iterator[Path]:
        """Yield a folder to save the model in; it replaces `model/` when all is in it."""
        partial = self.path / "model.partial"
        make_empty_folder(partial)
        try:
            yield partial
            readable = partial.stat().st_mode & 0o666  # as the umask says; safetensors' own files are private
            for file in partial.iterdir():
                file.chmod(readable)
                fsync_path(file)
            fsync_path(partial)
        except BaseException:
            remove_if_possible(partial)
            raise
        clear_path(self.model)
        partial.rename(self.model)
        fsync_path(self.path)

    def clear_results(self) -> None:
        """Remove the measurements and the model of a run that begins again."""
        clear_path(self.model)
        for name in (METRICS, "samples.jsonl"):
            remove(self.path / name)

    def rewind(self, step: int, evaluated: int) -> int:
        """Remove what was measured and saved after a checkpoint, which will be done again.

        Args:
            step: Steps done in the checkpoint.
            evaluated: Steps done at its last evaluation.

        Returns:
            How many damaged lines of metrics.jsonl were removed; one that a killed process tore is not counted.
        """
        kept, damaged = [], 0
        for line, row in lines(self.path / METRICS, MetricsLine):
            if row is None:
                damaged += line.endswith("\n")
            elif row["step"] <= (evaluated if row["event"] == Evaluated.id else step):
                kept.append(line)
        self.write_text(METRICS, "".join(kept))
        remove(self.path / "samples.jsonl")
        clear_path(self.model)
        return damaged

    def clean_up_finished(self) -> None:
        """Remove what a kill right after the end of a run left."""
        with suppress(InputError), self.lock():  # it can't be written, or is held
            self.remove_checkpoints()

    def remove_checkpoints(self) -> bool:
        """Remove the checkpoints as far as possible, and return whether all are gone; a finished run has its model."""
        return remove_if_possible(self.checkpoints)

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        atomic_write(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        self.write_text(name, json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def record(self) -> Record:
        """Read `run.json`.

        Raises:
            InputError: It is missing or damaged.
        """
        file = self.path / RECORD
        try:
            return parse(file.read_bytes(), Record)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(Problem(f"{file}: this is not the record of a run", reason, self._again())) from None

    def _again(self) -> str:
        """Return what to type if the run itself is lost."""
        recipe = self.path / RECIPE
        if not recipe.is_file():
            return TRAIN_AGAIN
        return f"neft train --recipe {shlex.quote(str(recipe))}    trains it again, in a new folder"

    def evaluations(self) -> list[MetricsLine]:
        """Read the evaluations of `metrics.jsonl`, without lines that are damaged."""
        read = (row for _, row in lines(self.path / METRICS, MetricsLine))
        return [row for row in read if row is not None and row["event"] == Evaluated.id]

    def append_line(self, name: str, content: dict[str, Any]) -> None:
        """Add one object as a line of a .jsonl file."""
        with open_without_links(self.path / name, "a") as file:
            file.write(json_line(content))


def _clear_unborn(parent: Path) -> None:
    """Remove hidden folders of runs that were killed before they got their name."""
    from filelock import FileLock, Timeout

    for folder in parent.glob(".*/"):
        with suppress(OSError, Timeout):  # another process was faster, or is at work in it
            if _is_unborn(folder) and is_stale(folder):
                with FileLock(folder / LOCK, timeout=0):
                    remove(folder)


def _is_unborn(folder: Path) -> bool:
    """Return whether a folder has the name and nothing but the files of a run that was killed before it got its name.

    Anything else in it is somebody's.
    """
    if not TEMPORARY.fullmatch(folder.name) or folder.is_symlink():
        return False
    for path in folder.iterdir():
        temporary = TEMPORARY.fullmatch(path.name)
        name = temporary[1] if temporary else path.name
        if name not in BEFORE_NAMING or path.is_dir():
            return False
    return True


class ReadOnlyRunDirectory(RunDirectory):
    """The folder of a run in a process that is not the main process: it reads, and writes nothing."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Leave the lock to the main process."""
        yield

    def assign_name(self, parent: Path, name: str) -> None:
        """Leave the renaming to the main process, which sends the new path."""

    def remove(self) -> None:
        """Leave it."""

    def clear_results(self) -> None:
        """Leave them."""

    def rewind(self, step: int, evaluated: int) -> int:
        """Leave it."""
        return 0

    def remove_checkpoints(self) -> bool:
        """Leave them; the main process removes them."""
        return True

    def write_text(self, name: str, text: str) -> None:
        """Leave the writing to the main process."""

    def append_line(self, name: str, content: dict[str, Any]) -> None:
        """Leave the writing to the main process."""


def require_name(name: str) -> None:
    """Check the name of a run.

    Raises:
        InputError: It holds other characters than a folder should.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            Problem(
                "name: a run's name has letters, digits, dot, underscore and hyphen, at most 64, "
                "no dot or hyphen first",
                re.sub(SUFFIX, "", name),
                f"--name {_allowed(name)}",
            )
        )


def json_line(content: dict[str, Any]) -> str:
    """Return an object as one line of a .jsonl file."""
    return json.dumps(finite(content), ensure_ascii=False, allow_nan=False) + "\n"


def _allowed(name: str) -> str:
    """Return a valid name like `name`, without alpha and seed, which are appended anyway."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(SUFFIX, "", name)).strip(".-")[:SUGGESTED] or "my-run"


def finite(value: Any) -> Any:
    """Return the value for JSON, with null for NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
