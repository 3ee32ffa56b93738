"""QLoRA on a CPU has correct gradients after an evaluation too.

Oracle: the same adapters on the same weights, dequantised to float32. On processors with AVX512-BF16 bitsandbytes
repacks 4-bit weights at their first evaluation, for a kernel without gradients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model

from neftcli.data.tokens import TokenRow
from neftcli.evaluation.loss import row_losses
from neftcli.models.loading import load_model
from neftcli.models.registry import resolve_model
from tests.tiny import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # bitsandbytes 0.50


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Gradients of all adapters after one step on fixed tokens."""
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    tuned.train()
    ids = torch.randint(5, 240, (3, 20), generator=torch.Generator().manual_seed(1))
    tuned(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad for name, p in tuned.named_parameters() if p.grad is not None}


def test_qlora_gradients_after_an_evaluation_equal_those_of_dequantised_weights(tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama", "llama")
    reference = resolve_model(str(tmp_path / "llama"))
    quantised = load_model(reference, torch.float32, four_bit=True, compute_dtype=torch.float32)
    plain = load_model(reference, torch.float32)
    for layer, other in zip(quantised.modules(), plain.modules(), strict=True):
        if isinstance(layer, bnb.nn.Linear4bit):
            weights = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            other.weight.data = weights.float().reshape(other.weight.shape)
    row = TokenRow(list(range(5, 25)), list(range(5, 25)), False, False, "row 1")
    row_losses(quantised, [row], 1)
    results, expected = gradients(quantised), gradients(plain)
    assert results.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(results[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
