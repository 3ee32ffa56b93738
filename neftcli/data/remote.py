"""Files at an address, read through fsspec (s3://, gs://, hf://, https://, memory:// and others).

A remote file is first copied, as it is, into a temporary file without a name in the cache folder. So a broken
connection is no damaged row, every reader can seek, and memory does not grow with the file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from neftcli.data.data_file import DataFile
from neftcli.errors import DataError, Problem
from neftcli.system.cache_folder import open_cache_folder

CHUNK = 2**20  # bytes
CONNECT, SILENCE = 10.0, 60.0  # seconds until a server must accept a connection, and between two of its packets
HUB_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/([^/?#]+/[^/?#]+)(/[^?#]*)?")
HUB_SET = re.compile(r"hf://datasets/([^/?#@]+/[^/?#@]+)(/?)")
SECRET = re.compile("token|key|sig|secret|passw|credential", re.IGNORECASE)


def is_remote(source: str) -> bool:
    """Return whether `source` is the address of a file or folder on another machine (or in fsspec's memory)."""
    return "://" in source and not source.startswith("file://")


def strip_file_scheme(source: str) -> str:
    """A file:// address as the path that it names; any other source as it is."""
    return unquote(urlsplit(source).path) if source.startswith("file://") else source


def require_address(source: str) -> None:
    """Reject addresses of web pages, and addresses that contain a password or a key.

    Raises:
        DataError: With what to type instead.
    """
    if page := (HUB_PAGE.fullmatch(source.partition("?")[0]) or HUB_SET.fullmatch(source)):
        hub_id, rest = page[1], page[2] or ""
        kind, _, inside = rest.strip("/").partition("/")
        if kind == "resolve" and inside:
            return
        inside = inside.partition("/")[2]  # after the branch
        named = f"--dataset hf://datasets/{hub_id}/{inside}" if inside else f"--dataset {hub_id}"
        raise DataError(Problem("data.source: a data set of the hub is named by its id", source, named))
    if not is_remote(source):
        return
    parts = urlsplit(source)
    if parts.password or any(map(SECRET.search, parse_qs(parts.query, keep_blank_values=True))):
        name = quote(PurePosixPath(parts.path).name or "rows.jsonl")
        raise DataError(
            Problem(
                "data.source: an address must hold no password or key; it would be written into the run's recipe",
                f"{parts.scheme}://{parts.hostname}{parts.path}",
                f"curl -L -o {name} ADDRESS    downloads the file; then --dataset {name}",
            )
        )


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        DataError: The scheme is unknown, or the package that reads it is not installed.
    """
    import fsspec
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0]
    try:
        options = _http_options() if scheme in ("http", "https") else {}
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = str(known_implementations.get(scheme, {}).get("class", "")).partition(".")[0]
        if package in ("", "fsspec"):
            raise DataError(Problem(f"data.source: {scheme}:// needs a package", url, str(error))) from None
        needs = f"data.source: {scheme}:// needs the package {package}, which is not installed"
        raise DataError(Problem(needs, url, f"pip install {package}")) from None
    except Exception as error:  # a file system raises whatever its client raises
        if "Protocol not known" in str(error):
            known = ", ".join(f"{name}://" for name in ("s3", "gs", "hf", "https", "file"))
            raise DataError(Problem(f"data.source: no file system is known as {scheme}://", url, known)) from None
        raise _unreadable(url, error) from None
    return fs, str(path)


def _http_options() -> dict[str, Any]:
    """Options of fsspec's HTTP file system: the environment's proxies, and timeouts."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
    return {"client_kwargs": {"trust_env": True, "timeout": timeout}}


@contextmanager
def downloaded(fs: Any, path: str, name: str) -> Iterator[DataFile]:
    """A remote file's bytes in a temporary file, for the time of the block.

    Args:
        fs: Its file system.
        path: Its path there.
        name: Its address, for messages.

    Raises:
        DataError: It can't be read.
        InputError: The disk has no room for it.
    """
    with open_cache_folder("the copy of a remote file") as folder, tempfile.TemporaryFile(dir=folder) as copy:
        with reading(name):
            remote = fs.open(path, "rb")
        with closing(remote):
            while True:
                with reading(name):
                    chunk = remote.read(CHUNK)
                if not chunk:
                    break
                copy.write(chunk)
        copy.flush()
        yield DataFile(Path(PurePosixPath(urlsplit(name).path).name), name, copy)


def read_text(fs: Any, path: str, name: str) -> str:
    """A small text file.

    Raises:
        DataError: It can't be read.
    """
    with reading(name):
        return bytes(fs.cat_file(path)).decode("utf-8", "replace")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever a file system raises within the block into a DataError.

    Raises:
        DataError: It can't be read.
    """
    try:
        yield
    except Exception as error:  # a file system raises whatever its client raises
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> DataError:
    if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
        error = error.__cause__  # fsspec reports an HTTP connection that fails as a missing file
    got = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
    if isinstance(error, FileNotFoundError):
        return DataError(Problem(f"{name}: there is no file or folder at this address", got, "another address"))
    if not is_remote(name):
        return DataError(Problem(f"{name}: this can't be read", got, f"ls -la {quote(name)}    shows whose it is"))
    hint = "check the address, the connection and the credentials; or download the file first, and --dataset FILE"
    return DataError(Problem(f"{name}: this address can't be read", got, hint))
