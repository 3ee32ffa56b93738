"""Results of a model, kept on disk one by one as they come, so that nothing is computed twice.

A file's name holds a hash of all that its numbers depend on; change the rows, the settings or the weights, and
another file is begun.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from neftcli.errors import InputError, Problem
from neftcli.events import Notice, Observer
from neftcli.machine.files import clear_abandoned, open_own, require_no_link, require_no_links
from neftcli.runs.directory import json_line


class Store:
    """One file of results: an object a line, each with the place of its item.

    Attributes:
        path: The file.
        found: Place to object, for what is there.
    """

    def __init__(self, folder: Path, kind: str, depends_on: Mapping[str, Any]) -> None:
        digest = sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{kind}-{digest[:16]}.jsonl"
        require_no_link(self.path)
        self.found: dict[int, dict[str, Any]] = {line["place"]: line for line in read_whole_lines(self.path)}

    def add(self, results: Mapping[int, Mapping[str, Any]]) -> None:
        """Appends results that are not there yet, to disk before it returns."""
        new = {place: {"place": place, **result} for place, result in results.items() if place not in self.found}
        append_lines(self.path, new.values())
        self.found.update(new)


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; missing files have none.

    A last line that was torn by a kill is taken away; another that is damaged is left out, and measured again.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open_own(path, "r+b") as file:
            file.truncate(len(whole))
    # By bytes: a text's own line breaks count more characters than JSON escapes.
    objects = [_object(line) for line in whole.split(b"\n")]
    return [one for one in objects if one is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "place" in value else None


def append_lines(path: Path, objects: Any) -> None:
    """Adds objects to a .jsonl file, to disk before it returns."""
    text = "".join(map(json_line, objects))
    if not text:
        return
    with open_own(path, "a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def alone(folder: Path, observer: Observer) -> Iterator[None]:
    """Makes `folder` and holds it against other evaluations of the same model, which wait for their turn.

    Raises:
        InputError: The folder can't be made or written, or holds links.
    """
    from filelock import FileLock, Timeout

    require_no_links(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            observer.notify(Notice(f"another evaluation is at work in {folder}; waiting for it"))
            lock.acquire()
    except OSError as error:
        raise InputError(Problem(f"{folder} can't be written", error.strerror or str(error))) from None
    try:
        clear_abandoned(folder)
        yield
    finally:
        lock.release()
