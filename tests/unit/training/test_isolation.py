"""Whether documents of one row see each other.

Oracle: each architecture's own logits for the second document alone.
"""

from __future__ import annotations

import pytest
import torch

from neftcli.errors import TrainingError
from neftcli.training.isolation import TOLERANCE, leak_between_documents, require_isolation
from tests.tiny import FAMILIES, Family, tiny_model


def batch() -> dict[str, torch.Tensor]:
    """Two documents of 12 and 9 tokens in one row."""
    ids = torch.randint(10, 250, (1, 21), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "position_ids": torch.cat([torch.arange(12), torch.arange(9)])[None]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_measurement_agrees_with_the_document_alone(family: Family) -> None:
    model, packed = tiny_model(family).eval(), batch()
    with torch.no_grad():
        together = model(**packed, use_cache=False).logits[0, 12:]
        alone = model(input_ids=packed["input_ids"][:, 12:], use_cache=False).logits[0]
    apart = torch.allclose(together, alone, atol=1e-5)
    assert (leak_between_documents(model, packed) <= TOLERANCE) == apart
    assert apart == (family != "opt")


def test_a_leak_is_refused_and_says_what_to_type() -> None:
    with pytest.raises(TrainingError, match=r"OPTForCausalLM lets documents .*[\s\S]*--set training.batching=padded"):
        require_isolation(tiny_model("opt"), batch(), "OPTForCausalLM")


def test_one_document_alone_can_not_leak() -> None:
    ids = torch.arange(10, 20)[None]
    assert leak_between_documents(tiny_model("opt"), {"input_ids": ids, "position_ids": torch.arange(10)[None]}) == 0.0
