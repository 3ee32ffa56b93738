"""Whether the hub's settings can be used and the hub can be reached, asked once and quickly.

The hub's client retries an unreachable address for most of a minute, behind a dead proxy for several. So a connection
is tried first, through the proxy if there is one, and if none comes about the libraries are told to use their cache.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from neftcli.errors import InputError, Problem
from neftcli.machine.cache import home, unwritable
from neftcli.machine.network import proxies, unreachable, without_password

HUB = "https://huggingface.co"
UNREACHABLE = "the hub can't be reached; only what is in the local cache can be used ({})"
TRUE = ("1", "ON", "YES", "TRUE")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TOKEN = re.compile(r"[A-Za-z0-9_.~+/=-]+")


def prefer_cache_if_unreachable() -> str:
    """Puts the hub's libraries in offline mode if no connection comes about; to be called before they are imported.

    Returns:
        Why the libraries will use their cache only; an empty string if the hub can be reached.

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
        os.environ.pop("HF_DATASETS_OFFLINE", None)  # datasets would go by it
    return reason


def settings_in_force() -> str:
    """The settings by which the hub is reached, as they are typed and without passwords; empty if there are none."""
    found = [f"HF_ENDPOINT={without_password(os.environ['HF_ENDPOINT'])}"] if os.environ.get("HF_ENDPOINT") else []
    found += [f"{name}={without_password(value)}" for name, value in proxies().values()]
    return ", ".join(found)


def with_settings(said: str) -> str:
    """What a library said of a hub that it could not reach, with the settings that it was to be reached by."""
    settings = settings_in_force()
    return f"{said} (by {settings})" if settings else said


def drop_empty_endpoint() -> None:
    """Drops an HF_ENDPOINT without a value, which the hub's client would take for an address."""
    if not os.environ.get("HF_ENDPOINT", "").strip():
        os.environ.pop("HF_ENDPOINT", None)


def require_importable() -> None:
    """Checks HF_ENDPOINT as far as the hub's client reads it while it is imported, also for files of this machine.

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
        remedy = f"HF_ENDPOINT={HUB}, or unset HF_ENDPOINT"
        raise InputError(
            Problem(
                "HF_ENDPOINT: the hub's address is http:// or https://, a host, and a port",
                without_password(given),
                remedy,
            )
        )
    return address


def _require_token() -> None:
    """Checks the token that the hub's client will send. It is shown to nobody.

    Raises:
        InputError: It can't be one.
    """
    place = os.environ.get("HF_TOKEN_PATH") or str(_hub_home() / "token")
    given = [(name, os.environ[name]) for name in TOKENS if name in os.environ]
    try:
        given.append((place, Path(place).expanduser().read_text(encoding="utf-8")))
    except (OSError, RuntimeError):  # there is none, or it is somebody else's: the client does without it
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
        InputError: There is no home folder, and no setting in its place.
    """
    if given := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(given))
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "huggingface"
    return home("what comes from the hub", "HF_HOME") / ".cache" / "huggingface"


def _unwritable_cache() -> str:
    """Why nothing can be added to the cache that is there.

    Raises:
        InputError: There is no cache, and none can be made.
    """
    name = next((name for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") if os.environ.get(name)), "")
    folder = Path(os.path.expandvars(os.environ[name])) if name else _hub_home() / "hub"
    why = unwritable(folder)
    if why and not folder.is_dir():
        said = f"{folder}: the hub's cache can't be made there"
        raise InputError(Problem(said, why, f"{name or 'HF_HOME'}=FOLDER before the command, with a folder of yours"))
    return f"{folder}: {why}" if why else ""
