"""Checks that the hub's settings are valid, and that it can be reached.

Oracles: a table of the hosts that answer, in place of the network, which tests don't use; in a process of its own what
the hub's client says of itself; and no token in any message.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import InputError
from neftcli.system import network
from neftcli.system.hub import go_offline_if_unreachable, hub_settings

UNKNOWN = "https://hub.invalid/api"
KNOWN = ("huggingface.co", "mirror.example", "proxy")
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
OTHERS = ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT")
ROOT = Path(__file__).parents[3]


class _Connection(socket.socket):
    """A connection whose other end, a proxy, says that the tunnel is there."""

    def sendall(self, *_: Any) -> None:
        pass

    def setsockopt(self, *_: Any) -> None:
        pass

    def makefile(self, *_: Any, **__: Any) -> Any:
        from io import BytesIO

        return BytesIO(b"HTTP/1.1 200 OK\r\n\r\n")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """Return the addresses that were connected to, in an environment without settings of the hub."""
    for name in (*PROXIES, *OTHERS, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the function under test does to it
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    names: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float, *_: object) -> socket.socket:
        names.append(address)
        assert timeout < 10
        if address[0] not in KNOWN:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return _Connection(socket.AF_UNIX)

    monkeypatch.setattr(socket, "create_connection", connect)
    return names


def test_go_offline_if_unreachable_unknown_hub(asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries read an environment variable."""
    monkeypatch.setenv("HF_ENDPOINT", UNKNOWN)
    assert go_offline_if_unreachable() == "hub.invalid: Name or service not known"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert asked == [("hub.invalid", 443)]


@pytest.mark.parametrize("endpoint", [None, "", "https://mirror.example", "http://mirror.example:8080/hub"])
def test_go_offline_if_unreachable_known_hub(
    endpoint: str | None, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without HF_ENDPOINT it is huggingface.co; one connection is tried, to the port that the address names."""
    if endpoint is not None:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert not go_offline_if_unreachable()
    assert "HF_HUB_OFFLINE" not in os.environ
    port = 8080 if endpoint and "8080" in endpoint else 443
    assert asked == [("mirror.example" if endpoint else "huggingface.co", port)]


@pytest.mark.parametrize("proxy", PROXIES)
def test_go_offline_if_unreachable_through_a_proxy(
    proxy: str, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proxy the names are its affair."""
    monkeypatch.setenv("HF_ENDPOINT", UNKNOWN)
    monkeypatch.setenv(proxy, "http://proxy:3128")
    assert not go_offline_if_unreachable()
    assert "HF_HUB_OFFLINE" not in os.environ
    assert asked == [("proxy", 3128)]


def test_go_offline_if_unreachable_dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named, without the password."""
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@dead:3128")
    assert go_offline_if_unreachable() == "HTTPS_PROXY=http://***@dead:3128: Name or service not known"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert hub_settings() == "HTTPS_PROXY=http://***@dead:3128"


@pytest.mark.parametrize("hosts", ["huggingface.co", "*", "localhost, .co"])
def test_go_offline_if_unreachable_no_proxy(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://dead:3128")
    monkeypatch.setenv("NO_PROXY", hosts)
    assert not go_offline_if_unreachable()


def test_go_offline_if_unreachable_socks_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")
    monkeypatch.setattr(network, "SOCKS_PACKAGE", "no_such_package")
    reason = go_offline_if_unreachable()
    assert reason.startswith("ALL_PROXY=socks5://proxy:1080 needs the package no_such_package: pip install")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(network, "SOCKS_PACKAGE", "json")  # an installed one
    assert not go_offline_if_unreachable()


@pytest.mark.parametrize("value", ["socks4://proxy:1", "http://proxy:port", "http://", "http://[::1", "ftp://a", "a b"])
def test_go_offline_if_unreachable_malformed_proxy(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(InputError, match="http_proxy: a proxy's address"):
        go_offline_if_unreachable()


@pytest.mark.parametrize(
    "value",
    [
        "hf-mirror.example",
        "127.0.0.1:80",
        "https://h.example:port",
        "http://[::1",
        "ftp://h",
        "https://",
        "https://a b",
    ],
)
def test_go_offline_if_unreachable_malformed_endpoint(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(InputError, match="HF_ENDPOINT"):
        go_offline_if_unreachable()


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
@pytest.mark.parametrize(
    "token", ["hf_secret\nsecret", "hf_secret secret", "hf_secr\u00e9t", '"hf_secret"', "hf_secret\x01"]
)
def test_go_offline_if_unreachable_malformed_token(name: str, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, token)
    with pytest.raises(InputError, match=name) as raised:
        go_offline_if_unreachable()
    assert "secr" not in str(raised.value)


@pytest.mark.parametrize("token", ["", " ", "hf_secret", "hf_secret\n"])
def test_go_offline_if_unreachable_usable_token(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters that the hub's client strips are accepted."""
    monkeypatch.setenv("HF_TOKEN", token)
    assert not go_offline_if_unreachable()


@pytest.mark.parametrize("content", [b"hf_sec ret", b"\xff\xfe\x00"])
def test_go_offline_if_unreachable_malformed_token_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(InputError, match="token: a token is a single word"):
        go_offline_if_unreachable()


@pytest.mark.parametrize("name", ["HF_HOME", "HF_HUB_CACHE"])
def test_go_offline_if_unreachable_cache_that_is_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / "file"))
    with pytest.raises(InputError, match=f"{name}=FOLDER"):
        go_offline_if_unreachable()


def test_go_offline_if_unreachable_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="HF_HOME=FOLDER"):
        go_offline_if_unreachable()


@pytest.mark.parametrize("value", ["1", "ON", "yes", "True"])
def test_go_offline_if_unreachable_offline_mode_stays_on(
    value: str, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE also holds behind a proxy."""
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert go_offline_if_unreachable() == f"HF_HUB_OFFLINE is {value}"
    assert os.environ["HF_HUB_OFFLINE"] == value
    assert not asked


@pytest.mark.parametrize("value", ["0", "", "no"])
def test_go_offline_if_unreachable_offline_mode_that_is_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other values than the client's own four don't turn it on."""
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert not go_offline_if_unreachable()


def test_go_offline_if_unreachable_takes_the_hubs_client_offline() -> None:
    """Called before it is imported, the client reads the setting: what this function is for."""
    program = """
import socket
def unknown(*arguments):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
socket.getaddrinfo = unknown
from neftcli.system.hub import go_offline_if_unreachable
go_offline_if_unreachable()
from huggingface_hub.constants import HF_HUB_OFFLINE
print(HF_HUB_OFFLINE)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "True"
