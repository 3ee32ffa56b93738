"""Fixtures for tests of judges."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.judge_server import JudgeServer, judge_server


@pytest.fixture
def isolated_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a short first backoff, and remove all OpenAI and proxy settings from the environment."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    for name in [name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    """A server whose judge always replies A."""
    with judge_server() as running:
        yield running
