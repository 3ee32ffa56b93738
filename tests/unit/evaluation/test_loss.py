"""The loss of rows without noise.

Oracles: a plain loop in float64, one row and one token at a time; the same rows in different batches and a different
order; and the same model without noise.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from neftcli.evaluation.loss import RowLoss, mean_loss, row_losses
from neftcli.neftune import neftune
from tests.tiny import FAMILIES, VOCABULARY, Family, random_token_rows, tiny_model

MODELS = {family: tiny_model(family) for family in FAMILIES}


ROWS = random_token_rows([23, 5, 2, 40, 23, 11, 7])


def by_hand(model: Any, row: TokenRow) -> tuple[float, int, int]:
    """Negative log-likelihood, tokens and hits of one row, token by token in float64."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = exact(input_ids=torch.tensor([row.input_ids])).logits[0]
    loss, tokens, correct = 0.0, 0, 0
    for place in range(1, len(row.input_ids)):
        if row.labels[place] == IGNORE_INDEX:
            continue
        scores = logits[place - 1]
        loss += float(scores.exp().sum().log() - scores[row.labels[place]])
        tokens += 1
        correct += int(scores.argmax()) == row.labels[place]
    return loss, tokens, correct


def values(losses: list[RowLoss]) -> list[float]:
    return [loss.negative_log_likelihood for loss in losses]


@pytest.mark.parametrize("family", FAMILIES)
def test_row_losses_plain_loop_in_float64(family: Family) -> None:
    """Sum, count and hits of each row, in order, for every architecture, within float32 (1e-5)."""
    found = row_losses(MODELS[family], ROWS, batch_size=3)
    assert [loss.location for loss in found] == [row.location for row in ROWS]
    for loss, row in zip(found, ROWS, strict=True):
        expected, tokens, correct = by_hand(MODELS[family], row)
        assert loss.negative_log_likelihood == pytest.approx(expected, rel=1e-5)
        assert (loss.tokens, loss.correct) == (tokens, correct)
        assert loss.tokens == row.loss_tokens()


def test_row_losses_correct_tokens() -> None:
    """The model's own likeliest tokens are all correct, and no others are."""
    model = MODELS["llama"].eval()
    ids = [5, 9]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    labels = [IGNORE_INDEX, IGNORE_INDEX, *ids[2:]]
    right = TokenRow(ids, labels, False, True, "right")
    wrong = TokenRow(
        ids, [IGNORE_INDEX, IGNORE_INDEX, *((token + 1) % VOCABULARY for token in ids[2:])], False, True, "wrong"
    )
    assert [(loss.tokens, loss.correct) for loss in row_losses(model, [right, wrong], 2)] == [(6, 6), (6, 0)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_row_losses_any_batch_size(family: Family, batch_size: int) -> None:
    """A row's loss is the same in batches of any size, within float32 (1e-5)."""
    expected = values(row_losses(MODELS[family], ROWS, batch_size=3))
    assert values(row_losses(MODELS[family], ROWS, batch_size)) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(len(ROWS))), st.integers(1, 8))
def test_row_losses_order(order: list[int], batch_size: int) -> None:
    """Losses come in the order of the rows."""
    expected = {loss.location: loss for loss in row_losses(MODELS["llama"], ROWS, batch_size=3)}
    found = row_losses(MODELS["llama"], [ROWS[index] for index in order], batch_size)
    assert [loss.location for loss in found] == [ROWS[index].location for index in order]
    for loss in found:
        same = expected[loss.location]
        assert (loss.tokens, loss.correct) == (same.tokens, same.correct)
        assert loss.negative_log_likelihood == pytest.approx(same.negative_log_likelihood, rel=1e-5)


def test_row_losses_padding() -> None:
    """A short row padded by hundreds of tokens has the same loss as alone."""
    rows = random_token_rows([3, 700])
    for family in FAMILIES:
        together = row_losses(MODELS[family], rows, 2)[0]
        alone = row_losses(MODELS[family], rows[:1], 1)[0]
        assert together.negative_log_likelihood == pytest.approx(alone.negative_log_likelihood, rel=1e-5)


def test_row_losses_row_without_loss() -> None:
    """Its loss is zero and the rest of its batch is unaffected; the first token's label is never scored."""
    ids = ROWS[0].input_ids
    nothing = TokenRow(ids, [IGNORE_INDEX] * len(ids), True, False, "nothing")
    first = TokenRow(ids, [ids[0]] + [IGNORE_INDEX] * (len(ids) - 1), True, False, "first")
    found = row_losses(MODELS["llama"], [nothing, ROWS[0], first], 3)
    assert found[0] == RowLoss("nothing", 0.0, 0, 0)
    assert found[2] == RowLoss("first", 0.0, 0, 0)
    assert found[1].negative_log_likelihood == pytest.approx(by_hand(MODELS["llama"], ROWS[0])[0], rel=1e-5)


# Without noise


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_row_losses_with_attached_noise(family: Family, training: bool) -> None:
    """With NEFTune attached the losses are bit-identical, although the logits in training mode differ."""
    model = MODELS[family].train(training)
    expected = row_losses(model, ROWS, 3)
    tokens = torch.tensor([ROWS[0].input_ids])
    clean = model(input_ids=tokens).logits
    with neftune(model, alpha=50.0):
        assert row_losses(model, ROWS, 3) == expected
        assert torch.equal(model(input_ids=tokens).logits, clean) != training
    assert row_losses(model, ROWS, 3) == expected


def test_row_losses_without_dropout() -> None:
    """A model in training mode has the losses of evaluation mode."""
    model = tiny_model("opt", dropout=0.5, attention_dropout=0.5)
    assert row_losses(model.train(), ROWS, 3) == row_losses(model.eval(), ROWS, 3)


# Within memory


def test_row_losses_halves_the_batch_on_oom() -> None:
    """If at most two rows fit, a notice is given, and losses are bit-identical to those of batches of two."""
    notices: list[Any] = []

    def scarce(module: torch.nn.Module, arguments: Any, keywords: Any) -> None:
        if keywords["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model = tiny_model("llama")
    expected = row_losses(model, ROWS, 2)
    with model.base_model.register_forward_pre_hook(scarce, with_kwargs=True):
        found = row_losses(model, ROWS, 4, observer=SimpleNamespace(notify=notices.append))
    assert found == expected
    assert [notice.message for notice in notices] == ["out of memory with 4 rows per batch; batch size halved to 2"]


# State of the model


@pytest.mark.parametrize("training", [True, False])
def test_row_losses_restores_the_mode(training: bool) -> None:
    """The model and all its modules return to their mode; no gradient is kept."""
    model = tiny_model("llama").train(training)
    row_losses(model, ROWS, 3)
    assert {module.training for module in model.modules()} == {training}
    assert all(weight.grad is None for weight in model.parameters())


def test_row_losses_restores_the_mode_of_each_module() -> None:
    """A frozen part in evaluation mode stays in it when the rest continues training."""
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    row_losses(model, ROWS, 3)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert set(before.values()) == {True, False}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("a fault"), KeyboardInterrupt()])
def test_row_losses_restores_the_mode_after_a_failure(training: bool, error: BaseException) -> None:
    """Even if the second batch fails or is interrupted."""
    model = tiny_model("llama").train(training)
    modes: list[bool] = []

    def fail(module: torch.nn.Module, arguments: tuple[object, ...]) -> None:
        modes.append(module.training)
        if len(modes) == 2:
            raise error

    with model.base_model.register_forward_pre_hook(fail), pytest.raises(type(error)):
        row_losses(model, ROWS, 3)
    assert modes == [False, False]
    assert {module.training for module in model.modules()} == {training}


# Arithmetic


@pytest.mark.parametrize(
    ("arithmetic", "rounded"),
    [(lambda: None, False), (nullcontext, False), (lambda: torch.autocast("cpu", dtype=torch.bfloat16), True)],
    ids=["none", "nullcontext", "bfloat16"],
)
def test_row_losses_autocast(arithmetic: Callable[[], AbstractContextManager[object] | None], rounded: bool) -> None:
    """All batches run in the given autocast; in bfloat16 the losses are rounded."""
    plain = values(row_losses(MODELS["llama"], ROWS, 2))
    found = values(row_losses(MODELS["llama"], ROWS, 2, arithmetic()))
    assert found == pytest.approx(plain, rel=1e-2)
    assert (found != plain) == rounded
    assert not torch.is_autocast_enabled("cpu")


# Means


def test_mean_loss_weighted_by_tokens() -> None:
    """The mean is in nats per token with loss, not per row."""
    losses = [RowLoss("a", 3.0, 1, 0), RowLoss("b", 6.0, 5, 2), RowLoss("c", 0.0, 0, 0)]
    assert mean_loss(losses) == 1.5


def test_mean_loss_of_no_tokens() -> None:
    """It is None and not zero, which would mean a perfect model."""
    assert row_losses(MODELS["llama"], [], 3) == []
    assert mean_loss([]) is None
    assert mean_loss([RowLoss("a", 0.0, 0, 0)]) is None


def test_mean_loss_is_the_models_own_loss() -> None:
    """For rows of equal length in one batch it is the loss that transformers computes from the same labels."""
    rows = random_token_rows([20, 20, 20], seed=1)
    model = MODELS["llama"].eval()
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([row.input_ids for row in rows]), labels=torch.tensor([row.labels for row in rows])
        )
    assert mean_loss(row_losses(model, rows, 3)) == pytest.approx(float(output.loss), rel=1e-5)
