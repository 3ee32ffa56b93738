"""Check that an address can be reached, directly or through the environment's proxy."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import socket
from base64 import b64encode
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from neftcli.errors import InputError, Problem

CONNECT_TIMEOUT = 3.0  # seconds
SCHEMES = ("http", "https", "socks5", "socks5h")
"""Schemes of proxies that httpx, the client of hub and judge, supports."""
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
SOCKS_PACKAGE = "socksio"


def proxy_settings() -> dict[str, tuple[str, str]]:
    """Return the proxies of the environment: kind of address (http, https, all) to variable and proxy."""
    proxies = getproxies()
    if "*" in (host.strip() for host in proxies.get("no", "").split(",")):
        return {}
    settings = {}
    for kind in ("https", "http", "all"):
        if proxies.get(kind):
            lower, upper = f"{kind}_proxy", f"{kind.upper()}_PROXY"
            settings[kind] = (lower if os.environ.get(lower) else upper, proxies[kind])
    return settings


def explain_unreachable(address: SplitResult) -> str:
    """Return why a connection to an http(s) address fails; empty if it succeeds.

    Raises:
        InputError: A proxy's address is invalid.
    """
    scheme = address.scheme.lower()
    host, port = address.hostname or "", address.port or PORTS[scheme]
    proxies = {kind: (name, value, _proxy_address(name, value)) for kind, (name, value) in proxy_settings().items()}
    for name, value, proxy in proxies.values():  # the client sets up all of them, even those that it will not use
        if proxy.scheme.startswith("socks") and importlib.util.find_spec(SOCKS_PACKAGE) is None:
            install = f"pip install {SOCKS_PACKAGE}, or unset {name}"
            return f"{name}={redact_password(value)} needs the package {SOCKS_PACKAGE}: {install}"
    used = proxies.get(scheme) or proxies.get("all")
    if used is None or proxy_bypass(host):
        try:
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
            return f"{host}: {_reason(error)}"
        return ""
    name, value, proxy = used
    proxy_port = proxy.port or PORTS[proxy.scheme]
    connection = http.client.HTTPConnection(proxy.hostname or "", proxy_port, timeout=CONNECT_TIMEOUT)
    if scheme == "https" and proxy.scheme == "http":
        connection.set_tunnel(host, port, _authorization(proxy))
    try:
        connection.connect()
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        return f"{name}={redact_password(value)}: {_reason(error)}"
    finally:
        connection.close()
    return ""


def redact_password(address: str) -> str:
    """Return an address with *** in place of its user name and password."""
    return re.sub(r"(^|//)[^/@]*@", r"\1***@", address)


def _proxy_address(name: str, value: str) -> SplitResult:
    """Parse a proxy's address.

    Raises:
        InputError: The hub's client can't use it.
    """
    try:
        address = urlsplit(value if "://" in value else f"http://{value}")
        valid = address.scheme in SCHEMES and address.hostname and (address.port or 1) > 0
    except ValueError:
        address, valid = SplitResult("", "", "", "", ""), False
    if not valid or re.search(r"[^!-~]", value):
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        message = f"{name}: a proxy's address is a scheme ({schemes}), a host, and optionally a port"
        raise InputError(Problem(message, redact_password(value), f"{name}=http://HOST:PORT, or unset {name}"))
    return address


def _authorization(proxy: SplitResult) -> dict[str, str]:
    """Return the header that authenticates the user to a proxy."""
    if proxy.username is None:
        return {}
    credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(credentials.encode()).decode()}"}


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
