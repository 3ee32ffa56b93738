"""Data files and their lines of text."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from neftcli.errors import DataError, Problem

MAX_LINE_BYTES = 2**27
"""Maximum bytes of a line: a .gz of 600 kB can hold a line of 600 MB, which would take 2.5 GB to read."""
MAX_JSON_GZ_BYTES = 2**30
"""Maximum bytes of an unpacked .json.gz, which is read into memory as a whole."""
BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order mark to encoding, longer marks first."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows.

    Attributes:
        path: Its path; of a remote file, the name that it would have after a download.
        name: Its name in messages and in the locations of rows.
        downloaded: The temporary file that holds the bytes of a remote file; None for a local file.
    """

    path: Path
    name: str
    downloaded: IO[bytes] | None = None

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file for reading bytes, unpacking a .gz; a downloaded file has one reader at a time."""
        with self._open_raw() as raw:
            if not self.is_gzip():
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield cast(IO[bytes], unpacked)

    def _open_raw(self) -> IO[bytes]:
        if self.downloaded is None:
            return self.path.open("rb")
        copy = os.fdopen(os.dup(self.downloaded.fileno()), "rb")
        copy.seek(0)
        return copy

    def is_gzip(self) -> bool:
        """Return whether the file is named .gz."""
        return self.path.suffix.lower() == ".gz"

    def size(self) -> int:
        """Return the number of bytes on disk."""
        return (self.path.stat() if self.downloaded is None else os.fstat(self.downloaded.fileno())).st_size

    def name_with_ending(self, ending: str) -> str:
        """Return the file's name with a different ending, in front of a .gz."""
        gz = self.path.suffix if self.is_gzip() else ""
        return Path(self.path.name.removesuffix(gz)).stem + ending + gz


def read_lines(file: DataFile, *, whole: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, from 1.

    Args:
        file: The file.
        whole: The caller keeps the whole file in memory, so a line may be as long as the file may be.

    Raises:
        DataError: The file can't be unpacked, is not UTF-8 or has a line that is too long; with the line's number.
    """
    name = file.name
    max_bytes = MAX_LINE_BYTES
    if whole:
        max_bytes = MAX_JSON_GZ_BYTES if file.is_gzip() else sys.maxsize - 1
    number = 0
    try:
        with file.open() as content:
            for number, line in enumerate(iter(partial(content.readline, max_bytes + 1), b""), 1):
                if len(line) > max_bytes:
                    message = f"{name}, line {number}: a line has at most {max_bytes:,} bytes"
                    raise DataError(Problem(message, f"{line[:40].decode(errors='replace')}...", "shorten the line"))
                if number == 1:
                    _require_text(line, file)
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    got = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                    raise _not_utf8(f"{name}, line {number}", got) from None
                if "\0" in text:
                    message = f"{name}, line {number}: text must not contain NUL bytes"
                    raise DataError(Problem(message, repr(text[:40]), "remove the NUL bytes"))
                yield number, text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        hint = "the file is incomplete or damaged: download or pack it again"
        if str(error).startswith("Not a gzipped file"):
            hint = f"rename it to {file.path.stem}"
        raise DataError(
            Problem(f"{name}: this .gz can't be unpacked", f"{error} (after line {number})", hint)
        ) from None


def _not_utf8(location: str, got: str) -> DataError:
    return DataError(Problem(f"{location}: text must be UTF-8", got, "save the file as UTF-8"))


def _require_text(line: bytes, file: DataFile) -> None:
    """Reject a file whose first line shows that it has a different encoding or is not text.

    Raises:
        DataError: With what to do.
    """
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if line.startswith(mark)), "")
    if not encoding and line[1:4:2] == b"\0\0":
        encoding = "UTF-16LE"
    elif not encoding and line[0:3:2] == b"\0\0" and line[1:2] != b"\0":
        encoding = "UTF-16BE"
    if encoding:
        raise _not_utf8(f"{file.name}, line 1", encoding)
    gzip_hint = "unpack it once more" if file.is_gzip() else f"rename it to {file.path.name}.gz"
    kinds = {
        b"\x1f\x8b": ("gzip", gzip_hint),
        b"PK\3\4": ("a zip archive", "unzip it, then --dataset FILE"),
        b"PAR1\x15": ("Parquet", f"rename it to {file.name_with_ending('.parquet')}"),
    }
    for magic, (kind, hint) in kinds.items():
        if line.startswith(magic):
            raise DataError(Problem(f"{file.name}: this is not a text file", kind, hint))
    if line.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        got = line.decode(errors="replace").strip()[:60]
        hint = "download the file itself, with its raw or download link"
        raise DataError(Problem(f"{file.name}: this is a web page, not a file of rows", got, hint))
