"""Check quickly that the hub's settings are valid and that the hub can be reached.

The hub's client retries an unreachable address for most of a minute, and through a dead proxy for several. So neft
tries to connect once, through the proxy if there is one, and otherwise switches the libraries to their cache.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from neftcli.errors import InputError, Problem
from neftcli.events import Notice, Observer
from neftcli.system.cache_folder import explain_unwritable, home_folder
from neftcli.system.network import explain_unreachable, proxy_settings, redact_password

HUB = "https://huggingface.co"
UNREACHABLE = "the hub can't be reached; using the local cache only ({})"
HUB_TRUE = ("1", "ON", "YES", "TRUE")
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TOKEN = re.compile(r"[A-Za-z0-9_.~+/=-]+")


def go_offline_if_unreachable() -> str:
    """Put the hub's libraries in offline mode if no connection succeeds; call this before they are imported.

    Returns:
        The reason for using the cache only; empty if the hub can be reached.

    Raises:
        InputError: A setting of the hub (address, token, cache folder, proxy) is invalid.
    """
    drop_empty_endpoint()
    address = hub_endpoint()
    _require_valid_tokens()
    reason = _explain_unwritable_cache()
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in HUB_TRUE:
            return f"{name} is {os.environ[name]}"
    reason = reason or explain_unreachable(address)
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.pop("HF_DATASETS_OFFLINE", None)  # datasets prefers it
    return reason


def notify_if_unreachable(observer: Observer) -> None:
    """Put the hub's libraries in offline mode if no connection succeeds, and notify the observer.

    Raises:
        InputError: A setting of the hub is invalid.
    """
    if reason := go_offline_if_unreachable():
        observer.notify(Notice(UNREACHABLE.format(reason)))


def hub_settings() -> str:
    """Return the environment's settings for reaching the hub, without passwords; empty if there are none."""
    settings = dict(proxy_settings().values())
    if os.environ.get("HF_ENDPOINT"):
        settings = {"HF_ENDPOINT": os.environ["HF_ENDPOINT"], **settings}
    return ", ".join(f"{name}={redact_password(value)}" for name, value in settings.items())


def add_hub_settings(message: str) -> str:
    """Add the hub's settings, if there are any, to a library's error about the hub."""
    settings = hub_settings()
    return f"{message} (with {settings})" if settings else message


def drop_empty_endpoint() -> None:
    """Drop an empty HF_ENDPOINT, which the hub's client would use as an address."""
    if not os.environ.get("HF_ENDPOINT", "").strip():
        os.environ.pop("HF_ENDPOINT", None)


def require_parsable_endpoint() -> None:
    """Check HF_ENDPOINT as far as the hub's client parses it at import, even if only local files are read.

    Raises:
        InputError: HF_ENDPOINT is not an address.
    """
    drop_empty_endpoint()
    try:
        _ = urlsplit(os.environ.get("HF_ENDPOINT", HUB)).hostname
    except ValueError:
        hub_endpoint()


def hub_endpoint() -> SplitResult:
    """Return the hub's address.

    Raises:
        InputError: HF_ENDPOINT is not an address.
    """
    typed = os.environ.get("HF_ENDPOINT", HUB)
    try:
        address = urlsplit(typed)
        valid = address.scheme in ("http", "https") and address.hostname and (address.port or 1) > 0
    except ValueError:  # a port that is not a number, or half an IPv6 address
        address, valid = SplitResult("", "", "", "", ""), False
    if not valid or re.search(r"[^!-~]", typed):
        message = "HF_ENDPOINT: the hub's address is http:// or https://, a host, and optionally a port"
        hint = f"HF_ENDPOINT={HUB}, or unset HF_ENDPOINT"
        raise InputError(Problem(message, redact_password(typed), hint))
    return address


def _require_valid_tokens() -> None:
    """Check the tokens that the hub's client may send. Messages never show them.

    Raises:
        InputError: A token has characters that no token has.
    """
    tokens = [(name, os.environ[name]) for name in TOKEN_VARIABLES if name in os.environ]
    file = str(_token_file())
    try:
        tokens.append((file, Path(file).expanduser().read_text(encoding="utf-8")))
    except (OSError, RuntimeError):  # missing, or not readable by this user: the client works without it
        pass
    except ValueError:  # not UTF-8
        tokens.append((file, "\0"))
    problems = []
    for name, token in tokens:
        if token.strip() and not TOKEN.fullmatch(token.strip()):
            message = f"{name}: a token is a single word of letters, digits and _"
            remove = "unset" if name in TOKEN_VARIABLES else "rm"
            hint = f"{remove} {name}, or a token from {HUB}/settings/tokens"
            problems.append(Problem(message, "a different text (not shown)", hint))
    if problems:
        raise InputError(*problems)


def token_source() -> str:
    """Return the variable or file with the token that the hub's client sends; empty if there is none.

    Raises:
        InputError: The user has no home folder.
    """
    for name in TOKEN_VARIABLES:
        if os.environ.get(name, "").strip():
            return name
    file = _token_file()
    with suppress(OSError, RuntimeError, ValueError):
        if file.expanduser().read_text(encoding="utf-8").strip():
            return str(file)
    return ""


def _token_file() -> Path:
    return Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token")


def hub_home() -> Path:
    """Return the folder of the hub's client, with its token and its cache.

    Raises:
        InputError: The user has no home folder, and no variable names another folder.
    """
    if folder := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(folder))
    if user_cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(user_cache) / "huggingface"
    return home_folder("the hub's cache", "HF_HOME") / ".cache" / "huggingface"


def hub_cache_folder() -> tuple[str, Path]:
    """Return the folder of the hub's cache, and the variable that names it.

    Raises:
        InputError: The user has no home folder, and no variable names another folder.
    """
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return variable, Path(os.path.expandvars(os.environ[variable]))
    return "HF_HOME", hub_home() / "hub"


def _explain_unwritable_cache() -> str:
    """Return why the existing cache can't be written; empty if it can.

    Raises:
        InputError: There is no cache, and it can't be created.
    """
    name, folder = hub_cache_folder()
    reason = explain_unwritable(folder)
    if reason and not folder.is_dir():
        message = f"{folder}: the hub's cache can't be created here"
        raise InputError(
            Problem(message, reason, f"{name}=FOLDER before the command, with a folder that you can write to")
        )
    return f"{folder}: {reason}" if reason else ""
