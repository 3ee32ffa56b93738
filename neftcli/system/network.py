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

PATIENCE = 3.0  # seconds
SCHEMES = ("http", "https", "socks5", "socks5h")
"""Schemes of proxies that httpx, the client of hub and judge, supports."""
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
LIBRARY = "socksio"


def proxies() -> dict[str, tuple[str, str]]:
    """Kind of address (http, https, all) to the variable that names its proxy, and the proxy."""
    found = getproxies()
    if "*" in (host.strip() for host in found.get("no", "").split(",")):
        return {}
    named = {}
    for kind in ("https", "http", "all"):
        if found.get(kind):
            lower, upper = f"{kind}_proxy", f"{kind.upper()}_PROXY"
            named[kind] = (lower if os.environ.get(lower) else upper, found[kind])
    return named


def unreachable(address: SplitResult) -> str:
    """The reason why a connection to an http(s) address fails, or an empty string.

    Raises:
        InputError: A proxy's address can't be used.
    """
    scheme = address.scheme.lower()
    host, port = address.hostname or "", address.port or PORTS[scheme]
    known = {kind: (name, value, _proxy_address(name, value)) for kind, (name, value) in proxies().items()}
    for name, value, proxy in known.values():  # the client sets up all of them, even those that it will not use
        if proxy.scheme.startswith("socks") and importlib.util.find_spec(LIBRARY) is None:
            return (
                f"{name}={without_password(value)} needs the package {LIBRARY}: pip install {LIBRARY}, or unset {name}"
            )
    through = known.get(scheme) or known.get("all")
    if through is None or proxy_bypass(host):
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: no host has such a name
            return f"{host}: {_words(error)}"
        return ""
    name, value, proxy = through
    connection = http.client.HTTPConnection(proxy.hostname or "", proxy.port or PORTS[proxy.scheme], timeout=PATIENCE)
    if scheme == "https" and proxy.scheme == "http":
        connection.set_tunnel(host, port, _authorization(proxy))
    try:
        connection.connect()
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        return f"{name}={without_password(value)}: {_words(error)}"
    finally:
        connection.close()
    return ""


def without_password(address: str) -> str:
    """An address without the name and password that it may hold."""
    return re.sub(r"(^|//)[^/@]*@", r"\1***@", address)


def _proxy_address(name: str, value: str) -> SplitResult:
    """A proxy's address.

    Raises:
        InputError: It is none that the hub's client can use.
    """
    try:
        address = urlsplit(value if "://" in value else f"http://{value}")
        whole = address.scheme in SCHEMES and address.hostname and (address.port or 1) > 0
    except ValueError:
        address, whole = SplitResult("", "", "", "", ""), False
    if not whole or re.search(r"[^!-~]", value):
        said = f"{name}: a proxy's address is {', '.join(f'{scheme}://' for scheme in SCHEMES)}, a host, and a port"
        raise InputError(Problem(said, without_password(value), f"{name}=http://HOST:PORT, or unset {name}"))
    return address


def _authorization(proxy: SplitResult) -> dict[str, str]:
    """The header that authenticates a user to a proxy."""
    if proxy.username is None:
        return {}
    known = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(known.encode()).decode()}"}


def _words(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0]
