"""Evaluation mode checks that no noise is added.

Oracle: noise that is added in evaluation mode, as by a faulty hook.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neftcli.errors import NeftuneError
from neftcli.evaluation.loss import row_losses
from neftcli.neftune import neftune
from neftcli.neftune.evaluation_mode import evaluation_mode
from tests.tiny import FAMILIES, Family, random_token_rows, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_mode_rejects_a_hook_that_adds_noise(family: Family) -> None:
    model = tiny_model(family)

    def careless(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 1e-6 * torch.rand_like(output)

    with (
        model.get_input_embeddings().register_forward_hook(careless),
        pytest.raises(NeftuneError, match="an evaluation must be without noise"),
    ):
        row_losses(model, random_token_rows([23, 5, 2]), 2)
    assert model.training
    row_losses(model, random_token_rows([23, 5, 2]), 2)


def test_evaluation_mode_rejects_forced_noise() -> None:
    model = tiny_model("llama")
    with neftune(model, alpha=5.0) as noise, noise.force(), pytest.raises(NeftuneError), evaluation_mode(model):
        pass


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_evaluation_mode_accepts_attached_noise(alpha: float) -> None:
    model = tiny_model("gemma")
    with neftune(model, alpha=alpha), evaluation_mode(model):
        assert not model.training
    assert model.training
