"""Check once and quickly that the hub's settings are valid and the hub can be reached.

The hub's client retries an unreachable address for most of a minute, and through a dead proxy for several. So neft
tries a connection first, through the proxy if there is one, and otherwise sets the libraries to use their cache.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from neftcli.errors import InputError, Problem
from neftcli.system.cache import home, unwritable
from neftcli.system.network import proxies, unreachable, without_password

HUB = "https://huggingface.co"
UNREACHABLE = "the hub can't be reached; only what is in the local cache can be used ({})"
TRUE = ("1", "ON", "YES", "TRUE")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TOKEN = re.compile(r"[A-Za-z0-9_.~+/=-]+")


def prefer_cache_if_unreachable() -> str:
    """Put the hub's libraries in offline mode if no connection succeeds; call this before they are imported.

    Returns:
        The reason for using the cache only; an empty string if the hub can be reached.

    Raises:
        InputError: A setting of the hub's (address, token, cache folder, proxy) can't be used.
    """
    drop_empty_endpoint()
    address = _endpoint()
    _require_token()
    reason = _unwritable_cache()
    if set_offline := [name for name in OFFLINE if os.environ.get(name, "").upper() in TRUE]:
        return f"{set_offline[0]} is {os.environ[set_offline[0]]}"
    reason = reason or unreachable(address)
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.pop("HF_DATASETS_OFFLINE", None)  # datasets prefers it
    return reason


def settings_in_force() -> str:
    """The environment's settings for reaching the hub, without passwords; empty if there are none."""
    found = [f"HF_ENDPOINT={without_password(os.environ['HF_ENDPOINT'])}"] if os.environ.get("HF_ENDPOINT") else []
    found += [f"{name}={without_password(value)}" for name, value in proxies().values()]
    return ", ".join(found)


def with_settings(said: str) -> str:
    """A library's error about an unreachable hub, with the settings that were used."""
    settings = settings_in_force()
    return f"{said} (with {settings})" if settings else said


def drop_empty_endpoint() -> None:
    """Drop an empty HF_ENDPOINT, which the hub's client would use as an address."""
    if not os.environ.get("HF_ENDPOINT", "").strip():
        os.environ.pop("HF_ENDPOINT", None)


def require_importable() -> None:
    """Check HF_ENDPOINT as far as the hub's client parses it at import, even if only local files are read.

    Raises:
        InputError: It is no address at all.
    """
    drop_empty_endpoint()
    try:
        _ = urlsplit(os.environ.get("HF_ENDPOINT", HUB)).hostname
    except ValueError:
        _endpoint()


def _endpoint() -> SplitResult:
    """The hub's address.

    Raises:
        InputError: HF_ENDPOINT is no address.
    """
    given = os.environ.get("HF_ENDPOINT", HUB)
    try:
        address = urlsplit(given)
        whole = address.scheme in ("http", "https") and address.hostname and (address.port or 1) > 0
    except ValueError:  # a port that is no number, or half an IPv6 address
        address, whole = SplitResult("", "", "", "", ""), False
    if not whole or re.search(r"[^!-~]", given):
        hint = f"HF_ENDPOINT={HUB}, or unset HF_ENDPOINT"
        raise InputError(
            Problem(
                "HF_ENDPOINT: the hub's address is http:// or https://, a host, and a port",
                without_password(given),
                hint,
            )
        )
    return address


def _require_token() -> None:
    """Check the token that the hub's client will send. It is never shown.

    Raises:
        InputError: It can't be one.
    """
    place = os.environ.get("HF_TOKEN_PATH") or str(_hub_home() / "token")
    given = [(name, os.environ[name]) for name in TOKENS if name in os.environ]
    try:
        given.append((place, Path(place).expanduser().read_text(encoding="utf-8")))
    except (OSError, RuntimeError):  # missing, or not readable by this user: the client works without it
        pass
    except ValueError:
        given.append((place, "\0"))
    problems = [
        Problem(
            f"{name}: a token is one word of letters, digits and _",
            "something else (it is not shown)",
            f"{'unset' if name in TOKENS else 'rm'} {name}, or a token from the hub's page of access tokens",
        )
        for name, token in given
        if token.strip() and not TOKEN.fullmatch(token.strip())
    ]
    if problems:
        raise InputError(*problems)


def _hub_home() -> Path:
    """The folder of the hub's client: of its token and of its cache.

    Raises:
        InputError: There is no home folder, and no variable names a folder instead.
    """
    if given := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(given))
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "huggingface"
    return home("the hub's cache", "HF_HOME") / ".cache" / "huggingface"


def _unwritable_cache() -> str:
    """The reason why the existing cache can't be written; an empty string if it can.

    Raises:
        InputError: There is no cache, and none can be created.
    """
    name = next((name for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") if os.environ.get(name)), "")
    folder = Path(os.path.expandvars(os.environ[name])) if name else _hub_home() / "hub"
    why = unwritable(folder)
    if why and not folder.is_dir():
        said = f"{folder}: the hub's cache can't be created here"
        raise InputError(Problem(said, why, f"{name or 'HF_HOME'}=FOLDER before the command, with a folder of yours"))
    return f"{folder}: {why}" if why else ""
