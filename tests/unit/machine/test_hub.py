"""Whether the hub can be reached.

Oracles: a table of the hosts that answer, in place of the network, which tests don't use, and in a process of its own
what the hub's client says of itself.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from neftcli.models.hub import PROXIES, prefer_cache_if_unreachable

UNKNOWN = "https://hub.invalid/api"
KNOWN = ("huggingface.co", "mirror.example")
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was connected to, in an environment that says nothing about the hub."""
    for name in (*PROXIES, "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the function under test does to it
        monkeypatch.delenv(name)
    names: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        names.append(address)
        assert timeout < 10
        if address[0] not in KNOWN:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return socket.socket(socket.AF_UNIX)

    monkeypatch.setattr(socket, "create_connection", connect)
    return names


def test_an_unknown_hub_means_the_cache(asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are told, by the environment variable that they read."""
    monkeypatch.setenv("HF_ENDPOINT", UNKNOWN)
    assert prefer_cache_if_unreachable()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert asked == [("hub.invalid", 443)]


@pytest.mark.parametrize("endpoint", [None, "https://mirror.example", "http://mirror.example:8080/hub"])
def test_a_known_hub_is_used(
    endpoint: str | None, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without HF_ENDPOINT it is huggingface.co; one connection is tried, to the port that the address names."""
    if endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert not prefer_cache_if_unreachable()
    assert "HF_HUB_OFFLINE" not in os.environ
    port = 8080 if endpoint and "8080" in endpoint else 443
    assert asked == [("mirror.example" if endpoint else "huggingface.co", port)]


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_proxy_knows_names_that_this_machine_does_not(
    proxy: str, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proxy the names are its affair."""
    monkeypatch.setenv("HF_ENDPOINT", UNKNOWN)
    monkeypatch.setenv(proxy, "http://proxy:3128")
    assert not prefer_cache_if_unreachable()
    assert "HF_HUB_OFFLINE" not in os.environ
    assert not asked


@pytest.mark.parametrize("value", ["1", "ON", "yes", "True"])
def test_offline_mode_stays_on_and_nothing_is_asked(
    value: str, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who set HF_HUB_OFFLINE meant it, also behind a proxy."""
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert prefer_cache_if_unreachable()
    assert os.environ["HF_HUB_OFFLINE"] == value
    assert not asked


@pytest.mark.parametrize("value", ["0", "", "no"])
def test_offline_mode_that_is_off_is_no_offline_mode(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other values than the client's own four don't turn it on."""
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert not prefer_cache_if_unreachable()


def test_the_hubs_client_goes_offline() -> None:
    """Called before it is imported, the client reads the setting: what this function is for."""
    program = """
import socket
def unknown(*arguments):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
socket.getaddrinfo = unknown
from neftcli.models.hub import prefer_cache_if_unreachable
prefer_cache_if_unreachable()
from huggingface_hub.constants import HF_HUB_OFFLINE
print(HF_HUB_OFFLINE)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "True"
