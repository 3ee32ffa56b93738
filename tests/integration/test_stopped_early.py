"""Signals before a run has anything to save: it stops at once, and leaves no partial conversion of a .gguf file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neftcli.models.gguf import unfinished_conversions
from neftcli.sweep import sweep_alpha
from neftcli.training import dry_run
from neftcli.training.signals import WARNINGS
from tests.conftest import Result, quick_arguments
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import save_tiny_gguf

LARGE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
"""With 40 layers the file has 100 MB, so its conversion takes seconds."""


@pytest.fixture
def _restored_signals() -> Iterator[None]:
    """At its end a command ignores signals, which here would last for the whole test process."""
    handlers = {name: signal.getsignal(signal.Signals[name]) for name in WARNINGS}
    yield
    for name, handler in handlers.items():
        signal.signal(signal.Signals[name], handler)


@pytest.mark.usefixtures("_restored_signals")
def test_train_dry_run_sigterm(neft: Callable[..., Result], quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_run(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the dry run continued")

    monkeypatch.setattr(dry_run, "plan_run", plan_run)
    result = neft(*quick, "--dry-run")
    assert result.code == 75
    assert "stopped before anything was started" in result.err


@pytest.mark.usefixtures("_restored_signals")
def test_sweep_alpha_dry_run_sigterm(
    neft: Callable[..., Result], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a sweep checks its inputs, before it handles signals itself."""

    def check_inputs(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the sweep continued")

    monkeypatch.setattr(sweep_alpha, "check_inputs", check_inputs)
    for option in ([], ["--dry-run"]):
        result = neft("sweep-alpha", *quick[1:], "--alphas", "0,5", *option)
        assert result.code == 75
        assert "stopped before anything was started" in result.err


@pytest.mark.slow
def test_train_gguf_conversion_sigterm(rows_file: Path, tmp_path: Path) -> None:
    file, cache = tmp_path / "large.gguf", tmp_path / "cache"
    save_tiny_gguf(file, tiny_model("llama", num_hidden_layers=40, **LARGE), tiny_tokenizer(), eot=2)
    command = [sys.executable, "-m", "neftcli", *quick_arguments(file, rows_file, tmp_path / "runs"), "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NEFT_CACHE": str(cache)},
    )
    deadline = time.monotonic() + 300
    while not unfinished_conversions(cache / "models"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert time.monotonic() - started < 30
    assert "stopped; " in err
    assert "Traceback" not in err
    assert unfinished_conversions(cache / "models") == []
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]
