"""What is left to others; tests/gpu has the rest."""

from __future__ import annotations

import torch

from neftcli.models import varlen_attention


def test_rows_of_a_cpu_and_in_float32_are_left_to_others() -> None:
    assert not varlen_attention.suits(torch.zeros(1, 2, 8, 64, dtype=torch.bfloat16), 0.0)
    assert not varlen_attention.suits(torch.zeros(1, 2, 8, 64, device="meta"), 0.0)
