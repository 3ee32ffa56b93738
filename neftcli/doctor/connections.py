"""Checks of the hub, its token and the proxies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from neftcli.errors import first_line
from neftcli.events import Checked, CheckId, CheckLevel
from neftcli.system.hub import HUB, HUB_TRUE, OFFLINE_VARIABLES, go_offline_if_unreachable, hub_endpoint, token_source
from neftcli.system.network import proxy_settings, redact_password

HUB_TIMEOUT = 10.0  # seconds
LOCAL_ONLY = "models and rows in the cache or in folders work"
UNAUTHORIZED = (401, 403)


def check_proxies(output_folder: Path) -> Iterator[Checked]:
    """Report the proxies of the environment, without passwords."""
    settings = ", ".join(f"{name}={redact_password(value)}" for name, value in proxy_settings().values())
    if settings:
        yield Checked(CheckId.PROXY, CheckLevel.OK, settings)


def check_hub(output_folder: Path) -> Iterator[Checked]:
    """Connect to the hub, unless it is switched off, and ask it for one model."""
    reason = go_offline_if_unreachable()
    address = hub_endpoint().geturl()
    if reason:
        switched_off = [name for name in OFFLINE_VARIABLES if reason.startswith(f"{name} is ")]
        hint = f"unset {switched_off[0]}    to use the hub" if switched_off else _connection_hint()
        text = f"not used: {reason}; {LOCAL_ONLY}" if switched_off else f"unreachable: {reason}; {LOCAL_ONLY}"
        yield Checked(CheckId.HUB, CheckLevel.WARNING, text, hint)
        return
    problem = _request("/api/models?limit=1", with_token=False)
    if problem:
        os.environ["HF_HUB_OFFLINE"] = "1"
        yield Checked(CheckId.HUB, CheckLevel.WARNING, f"{address}: {problem}; {LOCAL_ONLY}", _connection_hint())
    else:
        yield Checked(CheckId.HUB, CheckLevel.OK, f"{address} answers")


def check_token(output_folder: Path) -> Iterator[Checked]:
    """Report the token's location, and whether the hub accepts it; the token is never shown."""
    source = token_source()
    login = f"hf auth login, or HF_TOKEN=... with a token from {HUB}/settings/tokens"
    if not source:
        yield Checked(CheckId.TOKEN, CheckLevel.OK, "none; public models and data need none")
    elif os.environ.get("HF_HUB_OFFLINE", "").upper() in HUB_TRUE:
        yield Checked(CheckId.TOKEN, CheckLevel.OK, f"from {source}, not checked without the hub")
    elif problem := _request("/api/whoami-v2", with_token=True):
        yield Checked(CheckId.TOKEN, CheckLevel.WARNING, f"the hub rejects the token from {source}: {problem}", login)
    else:
        yield Checked(CheckId.TOKEN, CheckLevel.OK, f"from {source}, accepted")


def _connection_hint() -> str:
    if proxy_settings():
        return "curl -I https://huggingface.co    shows whether the proxy works"
    return "HTTPS_PROXY=http://HOST:PORT if this network needs a proxy, or HF_ENDPOINT=URL of a mirror"


def _request(path: str, *, with_token: bool) -> str:
    """Request a page of the hub as its client does, and return why that fails; empty if it succeeds."""
    from huggingface_hub import get_session
    from huggingface_hub.utils._headers import build_hf_headers

    headers = build_hf_headers(token=None if with_token else False)
    url = hub_endpoint().geturl().rstrip("/") + path
    try:
        response = get_session().get(url, headers=headers, timeout=HUB_TIMEOUT)
    except Exception as error:  # of several libraries
        return first_line(error)
    if response.status_code in UNAUTHORIZED:
        return f"it answers {response.status_code}, not authorised"
    return "" if response.status_code < 400 else f"it answers {response.status_code}"
