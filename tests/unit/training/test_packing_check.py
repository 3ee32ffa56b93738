"""Isolation of packed documents.

Oracle: each architecture's own logits for the second document alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from neftcli.errors import TrainingError
from neftcli.training.packing_check import LEAK_TOLERANCE, measure_leak, resolve_batching
from tests.tiny import FAMILIES, Family, tiny_model


def batch() -> dict[str, torch.Tensor]:
    """Two documents of 12 and 9 tokens in one row."""
    ids = torch.randint(10, 250, (1, 21), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "position_ids": torch.cat([torch.arange(12), torch.arange(9)])[None]}


@pytest.mark.parametrize("family", FAMILIES)
def test_measure_leak_against_the_document_alone(family: Family) -> None:
    model, packed = tiny_model(family).eval(), batch()
    with torch.no_grad():
        together = model(**packed, use_cache=False).logits[0, 12:]
        alone = model(input_ids=packed["input_ids"][:, 12:], use_cache=False).logits[0]
    apart = torch.allclose(together, alone, atol=1e-5)
    assert (measure_leak(model, packed) <= LEAK_TOLERANCE) == apart
    assert apart == (family != "opt")


def test_resolve_batching_packed_leak() -> None:
    with pytest.raises(
        TrainingError, match=r"OPTForCausalLM does not isolate packed documents.*[\s\S]*--set training.batching=padded"
    ):
        resolve_batching("packed", leaking())


def leaking() -> Any:
    """Return OPT with eager attention, for which it builds its own mask."""
    model = tiny_model("opt")
    model.config._attn_implementation = "eager"
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_resolve_batching_auto(family: Family) -> None:
    assert resolve_batching("auto", tiny_model(family)) == "padding_free"
    assert resolve_batching("padded", tiny_model(family)) == "padded"
    assert resolve_batching("auto", leaking()) == "padded"


def test_measure_leak_one_document() -> None:
    ids = torch.arange(10, 20)[None]
    assert measure_leak(tiny_model("opt"), {"input_ids": ids, "position_ids": torch.arange(10)[None]}) == 0.0


def test_resolve_batching_missing_package() -> None:
    """Qwen3.5's linear attention isolates packed documents only with another package: rows are padded."""
    config = Qwen3_5TextConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    )
    model = Qwen3_5ForCausalLM(config)
    assert resolve_batching("auto", model) == "padded"
    with pytest.raises(TrainingError, match="flash-linear-attention"):
        resolve_batching("packed", model)
