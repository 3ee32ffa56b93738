"""Types and settings that a run takes from the machine.

Oracle: the table of cases below, and glibc's own answer.
"""

from __future__ import annotations

import platform

import pytest
import torch

from neftcli.recipe.loading import assignment, load_recipe
from neftcli.training import machine


@pytest.mark.parametrize(
    ("sets", "bfloat16", "weights"),
    [
        (["training.precision=float32"], False, torch.float32),
        (["training.precision=bfloat16"], True, torch.float32),
        (["training.precision=bfloat16", "model.dtype=bfloat16"], True, torch.bfloat16),
        (["training.precision=bfloat16", "adapter.type=lora"], True, torch.float32),
    ],
)
def test_types_on_a_cpu(sets: list[str], bfloat16: bool, weights: torch.dtype) -> None:
    chosen = machine.choose_machine(load_recipe("quickstart", [assignment(text) for text in sets]))
    assert (chosen.device, chosen.bfloat16, chosen.weights) == ("cpu", bfloat16, weights)


def test_autocast_computes_in_the_chosen_type() -> None:
    for precision, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        chosen = machine.choose_machine(load_recipe("quickstart", [assignment(f"training.precision={precision}")]))
        with chosen.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc takes these settings")
def test_glibc_takes_the_settings() -> None:
    assert machine.keep_freed_memory()


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    machine.prepare_process()
    assert machine.os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
