"""Tokenised rows on disk, so that ranks, sweep arms and repeated commands don't tokenise the same rows again.

An entry is one file in `tokens` of the cache folder, named by a SHA-256 of everything that its tokens depend on: the
rows and their locations, the tokenizer, the chat template, the options, and the code. It is written atomically,
ends in a checksum, and is memory-mapped. The least recently used entries are removed beyond MAX_BYTES.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.dataset import TokenDataset
from neftcli.system.cache_folder import cache_folder
from neftcli.system.files import count_bytes, require_no_link
from neftcli.system.locks import LocksUnsupportedError, acquire_lock, is_locked

if TYPE_CHECKING:
    from neftcli.data.dataset import ExampleDataset

MIN_ROWS = 500
"""Fewer rows are not cached: tokenising them takes under half a second (docs/lab-log.md)."""
MAX_BYTES = 4 * 2**30
"""Maximum bytes of all entries together."""
DIGEST = hashlib.sha256().digest_size
ABANDONED_SECONDS = 86_400.0
"""Age at which an unfinished file is taken to be that of a process that died."""
INDEX_COLUMN = "index"
TOKENIZING_LIBRARIES = ("transformers", "tokenizers", "jinja2", "trl")


def hash_key(rows: ExampleDataset, *settings: str) -> str:
    """Return the key of the entry of these rows.

    Args:
        rows: The examples; content and locations are hashed.
        settings: Everything else that their tokens depend on: the tokenizer's JSON, its template, stop tokens, options.
    """
    digest = hashlib.sha256()
    for part in (_code_version(), *settings):
        digest.update(f"{len(part)} ".encode() + part.encode("utf-8", "surrogatepass"))
    for content, location in rows.contents_and_locations():
        digest.update(b"%d %d " % (len(content), len(location)) + content + location)
    return digest.hexdigest()


def load_or_create(
    key: str, tokenise: Callable[[], tuple[TokenDataset, Sequence[int]]]
) -> tuple[TokenDataset, Sequence[int]]:
    """Return tokenised rows and the indices of their examples, from the cache if they are in it.

    If several processes need the same entry, one creates it and the others wait. If the cache folder can't be written
    or the disk is full, the rows are tokenised and not cached. The folder may be a link, but not the entry or its lock.

    Raises:
        InputError: The entry or its lock is a link.
    """
    folder = token_folder()
    for path in (folder / f"{key}.arrow", folder / f"{key}.lock"):
        require_no_link(path)
    with _locked(folder, key) as writable:
        if (entry := _read(folder / f"{key}.arrow")) is not None:
            return entry
        rows, indices = tokenise()
        if writable:
            with suppress(OSError):  # it is tokenised again next time
                _write(folder, key, rows, indices)
                _evict(folder)
        return rows, indices


def token_folder() -> Path:
    """Return the folder of the entries."""
    return cache_folder() / "tokens"


def clear_entries() -> tuple[int, list[Path]]:
    """Remove all entries, and the unfinished files of processes that died.

    Returns:
        The freed bytes, and the files that a process is writing, which stay.
    """
    freed, in_use = 0, []
    folder = token_folder()
    if not folder.is_dir():
        return 0, []
    locked = [lock.stem for lock in folder.glob("*.lock") if is_locked(lock)]
    for path in [*folder.glob("*.arrow"), *folder.glob("*.part")]:
        if any(key.startswith(path.stem.partition("-")[0]) for key in locked):
            in_use.append(path)
            continue
        size = count_bytes(path)
        path.unlink(missing_ok=True)  # a process that reads it has it mapped
        freed += size
    return freed, in_use


@contextmanager
def _locked(folder: Path, key: str) -> Iterator[bool]:
    """Hold the lock of an entry; yields False if the folder can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(folder / f"{key}.lock", wait=True)
    except (OSError, LocksUnsupportedError):  # read-only, full, or a file system without locks
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _read(path: Path) -> tuple[TokenDataset, Sequence[int]] | None:
    """Return an entry; None if it is missing or damaged."""
    import pyarrow as arrow

    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = memoryview(mapped)[:-DIGEST]
        if hashlib.sha256(content).digest() != mapped[-DIGEST:]:
            return None
        table = arrow.ipc.open_stream(arrow.py_buffer(content)).read_all()
        os.utime(path)
    except (OSError, ValueError, arrow.ArrowException):  # ValueError: an empty file can't be mapped
        return None
    indices = array("q", table[INDEX_COLUMN].to_numpy().tobytes())
    return TokenDataset(table.drop_columns([INDEX_COLUMN])), indices


def _write(folder: Path, key: str, rows: TokenDataset, indices: Sequence[int]) -> None:
    """Write an entry atomically; an entry larger than MAX_BYTES is not written.

    Raises:
        OSError: The disk is full.
    """
    import pyarrow as arrow

    table = rows.table().append_column(INDEX_COLUMN, arrow.array(indices, arrow.int64()))
    if table.nbytes > MAX_BYTES:
        return
    descriptor, name = tempfile.mkstemp(prefix=f"{key[:16]}-", suffix=".part", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            sink = _Hashing(file)
            with arrow.ipc.new_stream(arrow.PythonFile(sink, "w"), table.schema) as writer:
                writer.write_table(table)
            file.write(sink.digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, folder / f"{key}.arrow")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class _Hashing:
    """A writable file that computes the SHA-256 of its content."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self._file.write(content)
        return len(content)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


def _evict(folder: Path) -> None:
    """Remove the least recently used entries beyond MAX_BYTES, and abandoned files."""
    entries = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removed it
            status = path.stat()
            if path.suffix == ".arrow":
                entries.append((status.st_mtime, status.st_size, path))
            elif time.time() - status.st_mtime > ABANDONED_SECONDS:
                path.unlink()
    total_bytes = 0
    for _, entry_bytes, path in sorted(entries, reverse=True):
        total_bytes += entry_bytes
        if total_bytes > MAX_BYTES:
            path.unlink(missing_ok=True)


@cache
def _code_version() -> str:
    """Return the versions of the code that tokenises: of the libraries, and a hash of neft's own."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted([*(package / "data").glob("*.py"), *(package / "models").glob("*.py")]):
        digest.update(path.read_bytes())
    return " ".join([*(f"{name} {version(name)}" for name in TOKENIZING_LIBRARIES), digest.hexdigest()])
