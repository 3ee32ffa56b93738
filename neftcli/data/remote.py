"""Files at an address, read through fsspec (s3://, gs://, hf://, https://, memory:// and others).

A remote file is first copied unchanged into an unnamed temporary file in the cache folder. A broken connection is
therefore never a damaged row, every reader can seek, and memory use does not grow with the file.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from neftcli.errors import DataError, InputError, Problem
from neftcli.rows.data_file import DataFile
from neftcli.system.cache_folder import open_cache_folder
from neftcli.system.network import redact_password

CHUNK_BYTES = 2**20
MAX_DOWNLOAD = "NEFT_MAX_DOWNLOAD_GIB"
"""Environment variable with the maximum size of a remote file."""
DEFAULT_MAX_DOWNLOAD_GIB = 20.0
MAX_TEXT_BYTES = 10 * 2**20
"""Maximum size of a README.md or a JSON file that describes a folder."""
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 60.0
"""Seconds until a server must accept a connection, and between two of its packets."""
HUB_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/([^/?#]+/[^/?#]+)(/[^?#]*)?")
HUB_SET = re.compile(r"hf://datasets/([^/?#@]+/[^/?#@]+)(/?)")
SECRET_PARAMETER = re.compile("token|key|sig|secret|passw|credential", re.IGNORECASE)


def is_remote(source: str) -> bool:
    """Return whether a source is the address of a file or folder on another machine, or in fsspec's memory."""
    return "://" in source and not source.startswith("file://")


def strip_file_scheme(source: str) -> str:
    """Return the path of a file:// address; other sources are returned unchanged."""
    return unquote(urlsplit(source).path) if source.startswith("file://") else source


def validate_address(source: str) -> None:
    """Reject addresses of web pages, and addresses that contain a password or a key.

    Raises:
        DataError: With what to type instead.
    """
    if page := (HUB_PAGE.fullmatch(source.partition("?")[0]) or HUB_SET.fullmatch(source)):
        hub_id, rest = page[1], page[2] or ""
        kind, _, path = rest.strip("/").partition("/")
        if kind == "resolve" and path:
            return
        path = path.partition("/")[2]  # after the branch
        hint = f"--dataset hf://datasets/{hub_id}/{path}" if path else f"--dataset {hub_id}"
        raise DataError(Problem("data.source: use the id of a hub data set, not its page", source, hint))
    if not is_remote(source):
        return
    try:
        parts = urlsplit(source)
    except ValueError as error:  # half of an IPv6 address
        raise DataError(Problem("data.source: this is not an address", redact_password(source), str(error))) from None
    if parts.password or any(map(SECRET_PARAMETER.search, parse_qs(parts.query, keep_blank_values=True))):
        raise DataError(
            Problem(
                "data.source: a URL must not contain a password or key, because the run's recipe would store it",
                f"{parts.scheme}://{parts.hostname}{parts.path}",
                "download the file, then --dataset FILE",
            )
        )


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it.

    Raises:
        DataError: The scheme is unknown, or its package is not installed.
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
        message = f"data.source: {scheme}:// needs the package {package}, which is not installed"
        raise DataError(Problem(message, url, f"pip install {package}")) from None
    except Exception as error:  # a file system raises whatever its client raises
        if "Protocol not known" in str(error):
            known = ", ".join(f"{name}://" for name in ("s3", "gs", "hf", "https", "file"))
            raise DataError(Problem(f"data.source: unknown scheme {scheme}://", url, known)) from None
        raise _unreadable(url, error) from None
    return fs, str(path)


def _http_options() -> dict[str, Any]:
    """Return options of fsspec's HTTP file system: the environment's proxies, and timeouts."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT)
    return {"client_kwargs": {"trust_env": True, "timeout": timeout}}


@contextmanager
def download(fs: Any, path: str, name: str) -> Iterator[DataFile]:
    """Copy a remote file into a temporary file that exists within the block.

    Args:
        fs: Its file system.
        path: Its path there.
        name: Its address, for messages.

    Raises:
        DataError: It can't be read, or is larger than the limit.
        InputError: The disk is full.
    """
    limit = max_download_bytes()
    with open_cache_folder("the copy of a remote file") as folder, tempfile.TemporaryFile(dir=folder) as copy:
        with filesystem_errors(name):
            remote = fs.open(path, "rb")
        with closing(remote):
            size = getattr(remote, "size", None) or 0
            while size <= limit:
                with filesystem_errors(name):
                    chunk = remote.read(CHUNK_BYTES)
                if not chunk:
                    break
                copy.write(chunk)
                size = max(size, copy.tell())
        if size > limit:
            gib = 2**30
            message = f"{name}: a remote file may have at most {limit / gib:.3g} GiB"
            hint = f"{MAX_DOWNLOAD}={2 * size / gib:.2g} allows more; or download the file, then --dataset FILE"
            raise DataError(Problem(message, f"{size / gib:.3g} GiB or more", hint))
        copy.flush()
        yield DataFile(Path(PurePosixPath(urlsplit(name).path).name), name, copy)


def max_download_bytes() -> int:
    """Return the maximum size of a remote file, from the environment.

    Raises:
        InputError: The variable is not a number of GiB.
    """
    value = os.environ.get(MAX_DOWNLOAD, "")
    try:
        gib = float(value or DEFAULT_MAX_DOWNLOAD_GIB)
        if not 0 < gib < float("inf"):
            raise ValueError
    except ValueError:
        raise InputError(
            Problem(f"{MAX_DOWNLOAD} must be a number of GiB, above 0", value, f"{MAX_DOWNLOAD}=50")
        ) from None
    return int(gib * 2**30)


def read_text(fs: Any, path: str, name: str) -> str:
    """Return the content of a small text file, up to MAX_TEXT_BYTES.

    Raises:
        DataError: It can't be read.
    """
    with filesystem_errors(name), fs.open(path, "rb") as file:
        return bytes(file.read(MAX_TEXT_BYTES)).decode("utf-8", "replace")


@contextmanager
def filesystem_errors(name: str) -> Iterator[None]:
    """Turn whatever a file system raises within the block into a DataError.

    Raises:
        DataError: The file system failed.
    """
    try:
        yield
    except Exception as error:  # a file system raises whatever its client raises
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> DataError:
    if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
        error = error.__cause__  # fsspec reports a failed HTTP connection as a missing file
    got = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
    if isinstance(error, FileNotFoundError):
        return DataError(Problem(f"{name}: no such file or folder at this URL", got, "use a different URL"))
    if not is_remote(name):
        return DataError(Problem(f"{name}: this can't be read", got, "check its permissions"))
    hint = "check the URL, the connection and the credentials; or download the file, then --dataset FILE"
    return DataError(Problem(f"{name}: this URL can't be read", got, hint))
