"""Which rows go into one call, told without a GPU; tests/gpu has what comes of it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neftcli.kernels import varlen_attention
from neftcli.kernels.varlen_attention import suits


def row(width: int = 64, kind: torch.dtype = torch.bfloat16, device: str = "cuda") -> Any:
    """What is looked at of a tensor."""
    return SimpleNamespace(shape=(1, 2, 8, width), dtype=kind, device=torch.device(device))


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen_attention._options.cache_clear()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    yield
    varlen_attention._options.cache_clear()


@pytest.mark.usefixtures("ampere")
def test_what_flash_attention_takes_goes_into_one_call() -> None:
    assert suits(row(), row(), 0.0)
    assert suits(row(128, torch.float16), row(128, torch.float16), 0.0)


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize(
    ("query", "value", "dropout"),
    [
        (row(device="cpu"), row(), 0.0),
        (row(kind=torch.float32), row(), 0.0),
        (row(100), row(100), 0.0),  # no multiple of 8
        (row(256), row(256), 0.0),
        (row(192), row(128), 0.0),  # values of another width
        (row(), row(), 0.1),
    ],
)
def test_other_rows_are_left_to_others(query: Any, value: Any, dropout: float) -> None:
    assert not suits(query, value, dropout)


@pytest.mark.usefixtures("ampere")
def test_an_older_gpu_and_an_older_torch_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch.nn.attention.varlen"
    older = SimpleNamespace(
        varlen_attn=lambda query, key, value, is_causal=False: None, __spec__=ModuleSpec(name, None)
    )
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, name, older)
        assert not suits(row(), row(), 0.0)
    varlen_attention._options.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not suits(row(), row(), 0.0)
