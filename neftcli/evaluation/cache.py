"""Results of a model, kept on disk one by one as they come, so that nothing is computed twice.

A file's name holds a hash of all that its numbers depend on; change the rows, the settings or the weights, and
another file is begun.
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
from neftcli.runs.directory import json_line
from neftcli.runs.schemas import Count, parse
from neftcli.system.files import open_without_links, remove_stale_files, require_no_link, require_no_links

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


Result = TypeVar("Result", bound="DataclassInstance")


class IndexedLine(TypedDict):
    """The item that a line is of."""

    place: Count


class ResultCache(Generic[Result]):
    """A file of results: a JSON object on each line, with the index of its item as `place`.

    Args:
        folder: Where the file is.
        kind: How its name begins.
        result: The dataclass of a result; lines that do not fit are left out, and measured again.
        depends_on: All that the results depend on.

    Attributes:
        path: The file.
        found: The results that are stored, by the index of their item.
    """

    def __init__(self, folder: Path, kind: str, result: type[Result], depends_on: Mapping[str, Any]) -> None:
        digest = sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{kind}-{digest[:16]}.jsonl"
        require_no_link(self.path)
        self.found: dict[int, Result] = {}
        for line in read_complete_lines(self.path):
            with suppress(ValueError):
                self.found[parse(line, IndexedLine)["place"]] = parse(line, result)

    def add(self, results: Mapping[int, Result]) -> None:
        """Append results that are not stored yet, to disk before it returns."""
        new = {place: result for place, result in results.items() if place not in self.found}
        append_lines(self.path, ({"place": place, **asdict(result)} for place, result in new.items()))
        self.found.update(new)


def read_complete_lines(path: Path) -> list[bytes]:
    """Read the lines of a .jsonl file; missing files have none. A last line that was torn by a kill is removed."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open_without_links(path, "r+b") as file:
            file.truncate(len(whole))
    return whole.split(b"\n")[:-1]  # by bytes: JSON does not escape every line break of a text


def append_lines(path: Path, objects: Any) -> None:
    """Adds objects to a .jsonl file, to disk before it returns."""
    text = "".join(map(json_line, objects))
    if not text:
        return
    with open_without_links(path, "a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def lock_results(folder: Path, observer: Observer) -> Iterator[None]:
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
        remove_stale_files(folder)
        yield
    finally:
        lock.release()
