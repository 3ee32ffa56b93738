"""Data files, text files line by line, and shell commands that repair unreadable files."""

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
from shlex import quote
from typing import IO, cast

from neftcli.errors import DataError, Problem

MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


MOST_LINE = 2**27
"""Bytes of a line, at most. A .gz of 600 kB can hold a line of 600 MB, which would take 2.5 GB to read."""
MOST_UNPACKED = 2**30
"""Bytes of a .json.gz unpacked, at most: all of it is read at once."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows.

    Attributes:
        path: Its path; of a remote file the name alone, as it is called after a download.
        name: Its name in messages and in the places of rows.
        downloaded: The temporary file that holds a remote file's bytes; None for a local file.
    """

    path: Path
    name: str
    downloaded: IO[bytes] | None = None

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open its bytes, unpacked if it is a .gz; of a downloaded file one reader at a time."""
        with self._open_as_it_is() as raw:
            if self.path.suffix.lower() != ".gz":
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield cast(IO[bytes], unpacked)

    def _open_as_it_is(self) -> IO[bytes]:
        if self.downloaded is None:
            return self.path.open("rb")
        copied = os.fdopen(os.dup(self.downloaded.fileno()), "rb")
        copied.seek(0)
        return copied

    def size(self) -> int:
        """Bytes, as they are stored."""
        return (self.path.stat() if self.downloaded is None else os.fstat(self.downloaded.fileno())).st_size


def lines(file: DataFile, *, whole: bool = False) -> Iterator[tuple[int, str]]:
    """Numbered lines of text.

    Args:
        file: The file.
        whole: The caller keeps all of it. Then a line may have any length, and of a .gz as many bytes as all of it.

    Raises:
        DataError: The file can't be unpacked, is no UTF-8 text or has too long a line; with the line.
    """
    path, name = file.path, file.name
    number = 0
    longest = MOST_LINE
    if whole:
        longest = MOST_UNPACKED if path.suffix.lower() == ".gz" else sys.maxsize - 1
    try:
        with file.open() as content:
            for number, line in enumerate(iter(partial(content.readline, longest + 1), b""), 1):
                if len(line) > longest:
                    said = f"{name}, line {number}: a line has at most {longest:,} bytes"
                    got = f"{line[:40].decode(errors='replace')}..."
                    raise DataError(Problem(said, got, "a file with shorter lines"))
                if number == 1:
                    _require_text(line, path, name)
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        Problem(
                            f"{name}, line {number}: text must be UTF-8",
                            f"byte 0x{line[error.start]:02x} at column {error.start + 1}",
                            through("iconv -f latin1 -t utf-8", path, f"utf8-{path.name}"),
                        )
                    ) from None
                if "\0" in text:
                    without = through("tr -d '\\0'", path, f"clean-{path.name}")
                    raise DataError(
                        Problem(f"{name}, line {number}: text must not hold NUL bytes", repr(text[:40]), without)
                    )
                yield number, text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        plain = str(error).startswith("Not a gzipped file")
        raise DataError(
            Problem(
                f"{name}: this .gz can't be unpacked",
                f"{error} (after line {number})",
                f"mv {quote(str(path))} {quote(str(path.with_suffix('')))}"
                if plain
                else f"gzip -t {quote(str(path))}    tells whether it is whole; fetch or pack it again",
            )
        ) from None


def _require_text(line: bytes, path: Path, name: str) -> None:
    """Reject by its beginning a file that is text in another encoding, or no text at all.

    Raises:
        DataError: With the command that makes it readable.
    """
    encoding = next((encoding for mark, encoding in MARKS if line.startswith(mark)), "")
    if not encoding and line[1:4:2] == b"\0\0":
        encoding = "utf-16le"
    elif not encoding and line[0:3:2] == b"\0\0" and line[1:2] != b"\0":
        encoding = "utf-16be"
    if encoding:
        hint = through(f"iconv -f {encoding} -t utf-8", path, f"utf8-{path.name}")
        raise DataError(Problem(f"{name}, line 1: text must be UTF-8", encoding.upper(), hint))
    packed = path.suffix.lower() == ".gz"
    kinds = {
        b"\x1f\x8b": ("gzip", f"gunzip {quote(str(path))}" if packed else renaming(path, f"{path.name}.gz")),
        b"PK\3\4": ("a zip archive", f"unzip {quote(str(path))}"),
        b"PAR1\x15": ("Parquet", renaming(path, with_ending(path, ".parquet"))),
    }
    for letters, (kind, hint) in kinds.items():
        if line.startswith(letters):
            raise DataError(Problem(f"{name}: this is no text", kind, hint))
    if line.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        hint = "download the file itself: the link of its raw or download button"
        got = line.decode(errors="replace").strip()[:60]
        raise DataError(Problem(f"{name}: this is a web page, not a file of rows", got, hint))


def through(command: str, path: Path, target: str) -> str:
    """The shell command that sends a file through `command` into another beside it, unpacking and packing a .gz."""
    source, beside = quote(str(path)), quote(str(path.with_name(target)))
    if path.suffix.lower() == ".gz":
        return f"zcat {source} | {command} | gzip > {beside}"
    return f"{command} < {source} > {beside}"


def renaming(path: Path, name: str) -> str:
    """The shell command that gives a file another name in its folder."""
    return f"mv {quote(str(path))} {quote(str(path.with_name(name)))}"


def with_ending(path: Path, ending: str) -> str:
    """The file's name with another ending before the .gz, if it has that."""
    packed = path.suffix if path.suffix.lower() == ".gz" else ""
    return Path(path.name.removesuffix(packed)).stem + ending + packed


def showing(path: Path, number: int) -> str:
    """The shell command that shows a line."""
    line = f"sed -n {number}p"
    packed = path.suffix.lower() == ".gz"
    command = f"zcat {quote(str(path))} | {line}" if packed else f"{line} {quote(str(path))}"
    return f"{command}    shows the line"
