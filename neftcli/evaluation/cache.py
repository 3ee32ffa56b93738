"""Cache of evaluation results on disk, written one by one, so that nothing is computed twice.

The name of a file contains a hash of everything that its results depend on: with other rows, settings or weights, neft
starts another file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from neftcli.errors import InputError, Problem
from neftcli.events import Notice, Observer
from neftcli.runs.directory import format_json_line
from neftcli.runs.schemas import RecordedCount, parse_json
from neftcli.system.files import open_without_links, remove_stale_files, require_no_link, require_no_links
from neftcli.system.locks import acquire_lock

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


Result = TypeVar("Result", bound="DataclassInstance")


class IndexedLine(TypedDict):
    """The index of the item that a line is about."""

    index: RecordedCount


class ResultCache(Generic[Result]):
    """A file of results: one JSON object per line, with the index of its item as `index`.

    Args:
        folder: Folder of the file.
        kind: Beginning of its name.
        result: Dataclass of a result. Lines that do not fit are ignored, and their results are computed again.
        depends_on: Everything that the results depend on.

    Attributes:
        path: The file.
        results: The stored results, by the index of their item.
    """

    def __init__(self, folder: Path, kind: str, result: type[Result], depends_on: Mapping[str, Any]) -> None:
        digest = sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{kind}-{digest[:16]}.jsonl"
        require_no_link(self.path)
        self.results: dict[int, Result] = {}
        for line in read_complete_lines(self.path):
            with suppress(ValueError):
                self.results[parse_json(line, IndexedLine)["index"]] = parse_json(line, result)

    def add(self, results: Mapping[int, Result]) -> None:
        """Append results that are not stored yet; they are on disk when this returns."""
        new = {index: result for index, result in results.items() if index not in self.results}
        append_lines(self.path, ({"index": index, **asdict(result)} for index, result in new.items()))
        self.results.update(new)


def read_complete_lines(path: Path) -> list[bytes]:
    """Read the lines of a .jsonl file; a missing file has none. A last line that a kill left incomplete is removed."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        with open_without_links(path, "r+b") as file:
            file.truncate(len(complete))
    return complete.split(b"\n")[:-1]  # as bytes: str.splitlines splits at characters that JSON does not escape


def append_lines(path: Path, objects: Any) -> None:
    """Append objects to a .jsonl file; they are on disk when this returns."""
    text = "".join(map(format_json_line, objects))
    if not text:
        return
    with open_without_links(path, "a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


COPY = "copy the run to a folder"
"""Hint for a run whose file system has no locks."""


@contextmanager
def lock_results(folder: Path, observer: Observer) -> Iterator[None]:
    """Create `folder` and lock it; other evaluations of the same model wait for their turn.

    Raises:
        InputError: The folder can't be created or written, contains links, or is on a file system without locks.
    """
    from filelock import Timeout

    require_no_links(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire_lock(folder / ".lock", other_folder=COPY)
        except Timeout:
            observer.notify(Notice(f"another evaluation is using {folder}; waiting for it"))
            lock = acquire_lock(folder / ".lock", wait=True, other_folder=COPY)
    except OSError as error:
        raise InputError(Problem(f"{folder} can't be written", error.strerror or str(error))) from None
    try:
        remove_stale_files(folder)
        yield
    finally:
        lock.release()
