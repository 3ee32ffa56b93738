"""Reporting to trackers: no secret in a message."""

from __future__ import annotations

import pytest

from neftcli.training.reporting import redact


def test_redact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    monkeypatch.setenv("WANDB_API_KEY", "0123abcd" * 5)
    monkeypatch.setenv("SHORT_KEY", "a")  # would hide every a
    text = f"401 for https://ann:hunter22@host/a?x=1 with {'0123abcd' * 5}"
    assert redact(text) == "401 for https://***@host/a?x=1 with ***"
