"""What is touched before the first update. Oracle: the estimate of memory, and the weights' own addresses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neftcli.models.memory import estimate_model_memory
from neftcli.recipe.loading import assignment, resolve
from neftcli.system import device
from neftcli.system.device import ComputeConfig
from neftcli.training import ahead
from tests.tiny import tiny_model

PREPARED: Any = SimpleNamespace(counts=SimpleNamespace(train=SimpleNamespace(tokens=1000)), train=[None] * 10)


def touched(monkeypatch: pytest.MonkeyPatch, free: int, *typed: str, on: str = "cpu") -> dict[str, Any]:
    """What is asked for, and whether its end was told, though the block failed."""
    seen: dict[str, Any] = {}

    def touch_ahead(size: int, written: Any) -> Any:
        seen.update(size=size, written=written, ended=False)
        return lambda: seen.update(ended=True)

    monkeypatch.setattr(ahead, "touch_ahead", touch_ahead)
    monkeypatch.setattr(device, "available_memory", lambda _: free)
    recipe, compute = resolve([assignment(part) for part in typed]), ComputeConfig(on, on, False, torch.float32)
    seen["model"], seen["recipe"] = tiny_model("llama"), recipe
    with pytest.raises(ZeroDivisionError), ahead.touching_ahead(recipe, compute, seen["model"], PREPARED):
        raise ZeroDivisionError
    return seen


def test_what_an_update_needs_beside_the_weights_and_the_weights_that_it_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = touched(monkeypatch, 2**40)
    memory = estimate_model_memory(seen["recipe"], seen["model"], 4, 4, 100, "cpu")
    assert seen["size"] == int(memory.total() - memory.weights) > 0
    assert [address for address, _ in seen["written"]] == [weight.data_ptr() for weight in seen["model"].parameters()]
    assert sum(length for _, length in seen["written"]) == memory.weights
    assert seen["ended"]


def test_frozen_weights_are_left_and_half_of_what_is_free_is_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = touched(monkeypatch, 1000, "adapter.type=lora")
    assert seen["size"] == 500
    assert seen["written"] == []


def test_packed_rows_are_as_long_as_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = touched(monkeypatch, 2**40, "training.batching=packed", "data.max_length=100")
    assert packed["size"] == touched(monkeypatch, 2**40)["size"]
    assert touched(monkeypatch, 2**40, "training.batching=packed", "data.max_length=200")["size"] > packed["size"]


def test_nothing_is_touched_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "size" not in touched(monkeypatch, 2**40, on="cuda")
