"""Record every state that a kill can leave: the content of a folder before each file operation of a command.

A kill (-9) ends a process and loses its buffers; what it had handed to the system stays. So a kill leaves the folder as
it is between two file operations. Instead of killing a command once for each operation, one run of it copies the folder
before each of them; equal copies are kept once. Files that are written in place can also be torn: they have a second
copy, in which half of what was added is missing.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

PRELOADED = [
    "neftcli.training.train",
    "neftcli.training.callbacks",
    "neftcli.training.trainer",
    "neftcli.models.loading",
]
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OLD = 7200.0
"""Seconds by which the files of a state are older than the command that comes after the kill."""


@dataclass
class Recorder:
    """Copies `folder` into `states` before each file operation of this process or a fork of it.

    Attributes:
        folder: The current folder of the command.
        states: Folder of the copies, whose names sort by time.
    """

    folder: Path
    states: Path
    _seen: set[object] = field(default_factory=set)
    _busy: bool = False

    def install(self) -> None:
        """Start recording, until the process ends."""
        fsync = os.fsync

        def recorded(descriptor: int) -> None:
            self.record(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}')}")
            fsync(descriptor)

        os.fsync = recorded
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or not (event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITES)):
            return
        if isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(f"{self.folder}/"):
                self.record(f"{event} {path}")

    def record(self, operation: str) -> None:
        """Copy the folder if it has changed."""
        if self._busy:
            return
        self._busy = True
        try:
            now = signature(self.folder)
            if now not in self._seen:
                self._seen.add(now)
                copy = self.states / f"{time.time_ns()}-{os.getpid()}"
                shutil.copytree(self.folder, copy / "folder", symlinks=True, ignore_dangling_symlinks=True)
                (copy / "operation.txt").write_text(operation.replace(f"{self.folder}/", ""))
        except (OSError, shutil.Error):  # another process changed it at the same time, and records it
            pass
        finally:
            self._busy = False


def signature(folder: Path) -> frozenset[object]:
    """Return a value that changes if the folder does."""
    found = []
    for path in folder.rglob("*"):
        facts = path.lstat()
        change = 0 if path.is_dir() else facts.st_mtime_ns
        found.append((str(path), facts.st_ino, facts.st_size, facts.st_mode, change))
    return frozenset(found)


def _main(arguments: Sequence[str], setup: Callable[[], None] | None) -> None:
    from neftcli.cli.main import main

    if setup is not None:
        setup()
    sys.argv = ["neft", *arguments]
    main()


def _recorded(call: Callable[[], object], folder: Path, states: Path | None, output: Path) -> None:
    """Call a function in a process, with its file operations recorded."""
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if states is not None:
        states.mkdir()
        Recorder(folder, states).install()
    call()


def neft_in(
    folder: Path, *arguments: object, states: Path | None = None, setup: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Run `neft` in a warm process with `folder` as its current folder; return its exit code and output."""
    return call_in(folder, partial(_main, [*map(str, arguments)], setup), states)


def call_in(folder: Path, call: Callable[[], object], states: Path | None = None) -> tuple[int, str]:
    """Call a function in a warm process with `folder` as its current folder; return its exit code and output."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    output = folder.with_name(f"{folder.name}.txt")
    process = context.Process(target=_recorded, args=(call, folder, states, output))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, output.read_text(errors="replace")


def states_of(states: Path) -> list[Path]:
    """Return the recorded folders, with the torn ones, with the file times that a kill hours ago would have left."""
    found = []
    before: dict[str, bytes] = {}
    for copy in sorted(states.iterdir()):
        if not (copy / "operation.txt").is_file():  # the copy was not finished
            continue
        found.append(copy / "folder")
        now = contents(copy / "folder")
        for name, content in now.items():
            old = before.get(name, b"")
            if len(content) > len(old) and content.startswith(old) and _is_written_in_place(copy / "folder" / name):
                torn = copy / f"torn-{name.replace('/', '-')}"
                shutil.copytree(copy / "folder", torn, symlinks=True)
                os.truncate(torn / name, (len(old) + len(content)) // 2)
                found.append(torn)
        before = now
    for folder in found:
        then = time.time() - OLD
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (then, then), follow_symlinks=False)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder with their content."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _is_written_in_place(file: Path) -> bool:
    """Return whether a kill can leave half of a file: files that are appended to, and those in unfinished folders."""
    unfinished = "checkpoint-" in file.parent.name and not (file.parent / "manifest.json").is_file()
    added = file.suffix in (".jsonl", ".log")
    return added or unfinished or file.parent.name == "model.partial"


def spread_out(found: Sequence[Path], most: int) -> list[Path]:
    """Return at most `most` of the states, evenly spaced, with the first and the last."""
    if len(found) <= most:
        return list(found)
    return [found[place * (len(found) - 1) // (most - 1)] for place in range(most)]
