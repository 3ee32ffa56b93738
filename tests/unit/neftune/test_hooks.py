"""Attaching the noise to a model and removing it again.

Oracle: the clean vectors from the embedding table, their bound alpha / sqrt(L d) in float64, and the number of hooks of
every module before and after.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from neftcli.errors import NeftuneError
from neftcli.neftune import Noise, neftune
from tests.tiny import HIDDEN, tiny_model

ALPHA = 5.0


def batch_of(*lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """Random documents, padded on the right."""
    time = max(lengths)
    mask = torch.tensor([[1] * length + [0] * (time - length) for length in lengths])
    token_ids = torch.randint(4, 256, mask.shape, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": token_ids * mask, "attention_mask": mask}


def embedded(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The embedding's output in one forward pass, with every hook attached so far."""
    seen: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _m, _a, output: seen.append(output.detach()))
    try:
        model(**batch)
    finally:
        handle.remove()
    (output,) = seen
    return output


def noise_in(model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
    """Noised minus clean vectors, in float64."""
    clean = nn.functional.embedding(batch["input_ids"], model.get_input_embeddings().weight)
    return (embedded(model, batch).double() - clean.double()).detach().numpy()


def hooks(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The number of hooks of each kind, for every module."""
    kinds = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    assert "_forward_hooks" in kinds
    return {name: tuple(len(getattr(module, kind)) for kind in kinds) for name, module in model.named_modules()}


def attributes(model: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.fixture
def model() -> nn.Module:
    return tiny_model("llama")


# Attaching once


def test_neftune_rejects_a_second_attachment(model: nn.Module) -> None:
    batch = batch_of(5)
    with neftune(model, ALPHA, seed=1) as noise:
        first = embedded(model, batch)
        attached = hooks(model)
        with pytest.raises(NeftuneError, match=r"exactly once\n.*already has NEFTune noise"), neftune(model, 1.0):
            pytest.fail("attached twice")
        assert hooks(model) == attached
        noise.begin_step(0)
        assert torch.equal(embedded(model, batch), first)


def test_neftune_rejects_hugging_faces_hook(model: nn.Module) -> None:
    handle = activate_neftune(model, 5.0)
    before = hooks(model)
    with (
        pytest.raises(NeftuneError, match=r"Hugging Face's own noise is on\n.*neftune_noise_alpha unset"),
        neftune(model, ALPHA),
    ):
        pytest.fail("attached in addition to Hugging Face's hook")
    assert hooks(model) == before
    deactivate_neftune(model, handle)
    with neftune(model, ALPHA):
        assert np.abs(noise_in(model, batch_of(5))).max() > 0


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_neftune_rejects_hugging_faces_hook_added_later(model: nn.Module, alpha: float) -> None:
    with neftune(model, alpha):
        embedded(model, batch_of(5))
        handle = activate_neftune(model, 5.0)
        with pytest.raises(NeftuneError, match="switched on meanwhile"):
            model(**batch_of(5))
        deactivate_neftune(model, handle)
        embedded(model, batch_of(5))


@pytest.mark.parametrize("error", [None, ValueError, NeftuneError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_neftune_removes_every_hook_at_the_end_of_the_block(
    model: nn.Module, error: type[BaseException] | None
) -> None:
    before, before_attributes = hooks(model), attributes(model)

    def leave() -> None:
        with neftune(model, ALPHA):
            assert hooks(model) != before
            model(**batch_of(5))
            if error is not None:
                raise error("stop")

    if error is None:
        leave()
    else:
        with pytest.raises(error, match="stop"):
            leave()
    assert hooks(model) == before
    assert attributes(model) == before_attributes
    assert not noise_in(model, batch_of(5)).any()
    with neftune(model, ALPHA):  # and a new attachment works
        assert noise_in(model, batch_of(5)).any()


def test_neftune_removes_every_hook_after_an_error(model: nn.Module) -> None:
    before = hooks(model)
    with pytest.raises(IndexError), neftune(model, ALPHA):
        model(input_ids=torch.tensor([[999_999]]))
    assert hooks(model) == before


def test_neftune_does_not_change_the_state_dict(model: nn.Module) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with neftune(model, ALPHA):
        model(**batch_of(5))
        inside = model.state_dict()
    assert inside.keys() == before.keys()
    assert all(torch.equal(inside[key], before[key]) for key in before)


def test_neftune_two_models_have_separate_noise(model: nn.Module) -> None:
    other = tiny_model("llama", seed=1)
    with neftune(model, ALPHA), neftune(other, 0.0):
        assert noise_in(model, batch_of(5)).any()
        assert not noise_in(other, batch_of(5)).any()


def test_neftune_unwraps_a_model(model: nn.Module) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    with neftune(Wrapper(model), ALPHA):
        assert noise_in(model, batch_of(5)).any()


# Rejected options


@pytest.mark.parametrize("alpha", [-1, -0.5, math.nan, math.inf, -math.inf, "five", True, False, None, [5.0]])
def test_neftune_rejects_alpha(model: nn.Module, alpha: Any) -> None:
    before = hooks(model)
    with pytest.raises(NeftuneError) as refused, neftune(model, alpha):
        pytest.fail(f"attached with alpha {alpha!r}")
    assert str(refused.value).splitlines() == [
        "alpha must be a finite number, 0 or more",
        f"  got      {alpha!r}",
        "  hint     alpha=5.0",
    ]
    assert hooks(model) == before


@pytest.mark.parametrize("schedule", ["linear_warmup", "linear_decay"])
@pytest.mark.parametrize("total_steps", [None, 0, -3])
def test_neftune_rejects_a_schedule_without_total_steps(
    model: nn.Module, schedule: Any, total_steps: int | None
) -> None:
    message = rf"schedule {schedule} needs total_steps\n  got      {total_steps}\n  hint     total_steps=1000"
    with (
        pytest.raises(NeftuneError, match=message),
        neftune(model, ALPHA, schedule=schedule, total_steps=total_steps),
    ):
        pytest.fail("attached without total_steps")


def test_neftune_reports_all_wrong_options_together(model: nn.Module) -> None:
    wrong: dict[str, Any] = {"noise": "loud", "length": "long", "schedule": "never"}
    with pytest.raises(NeftuneError) as refused, neftune(model, -1.0, **wrong):
        pytest.fail("attached")
    assert len(refused.value.problems) == 4
    for got in ("-1.0", "'loud'", "'long'", "'never'"):
        assert got in str(refused.value)


@pytest.mark.parametrize("alpha", [5, 5.0])
def test_neftune_integer_alpha(model: nn.Module, alpha: float) -> None:
    with neftune(model, alpha, seed=3):
        output = embedded(model, batch_of(6))
    with neftune(model, 5.0, seed=3):
        assert torch.equal(embedded(model, batch_of(6)), output)


# Randomness


def draw(model: nn.Module, *, seed: int = 0, rank: int = 0, step: int = 0, forward: int = 0) -> Tensor:
    """The noised embedding of forward pass number `forward` within step `step`."""
    with neftune(model, ALPHA, seed=seed, rank=rank) as noise:
        noise.begin_step(step)
        return [embedded(model, batch_of(5, 3)) for _ in range(forward + 1)][-1]


def test_noise_is_the_same_for_the_same_seed_rank_step_and_forward(model: nn.Module) -> None:
    options = {"seed": 4, "rank": 2, "step": 7, "forward": 1}
    assert torch.equal(draw(model, **options), draw(model, **options))


@pytest.mark.parametrize("other", [{"seed": 1}, {"rank": 1}, {"step": 1}, {"forward": 1}])
def test_noise_differs_with_seed_rank_step_and_forward(model: nn.Module, other: dict[str, int]) -> None:
    here, there = draw(model), draw(model, **other)
    real = batch_of(5, 3)["attention_mask"].bool()
    assert (here != there)[real].double().mean() > 0.99


def test_noise_does_not_depend_on_the_global_generator(model: nn.Module) -> None:
    torch.manual_seed(1)
    first = draw(model)
    torch.manual_seed(2)
    assert torch.equal(draw(model), first)


def test_noise_of_a_resumed_run_is_the_same(model: nn.Module) -> None:
    def train(steps: range) -> list[Tensor]:
        outputs = []
        with neftune(model, ALPHA, seed=9, schedule="linear_warmup", total_steps=6) as noise:
            for step in steps:
                noise.begin_step(step)
                outputs += [embedded(model, batch_of(4, 6, seed=step)) for _micro_batch in range(2)]
        return outputs

    whole = train(range(6))
    resumed = train(range(3, 6))
    assert len(resumed) == 6
    assert all(torch.equal(left, right) for left, right in zip(whole[6:], resumed, strict=True))
    assert not torch.equal(whole[6] - whole[8], torch.zeros_like(whole[6])), "steps differ from each other"


def test_noise_does_not_change_with_evaluation_between_steps(model: nn.Module) -> None:
    def train(evaluate: bool) -> list[Tensor]:
        outputs = []
        with neftune(model, ALPHA) as noise:
            for step in range(2):
                noise.begin_step(step)
                for _micro_batch in range(2):
                    outputs.append(embedded(model, batch_of(5)))
                    if evaluate:
                        model.eval()
                        model(**batch_of(7, 2))
                        model.train()
        return outputs

    assert all(torch.equal(left, right) for left, right in zip(train(False), train(True), strict=True))


def test_neftune_rank_is_torch_distributeds_by_default(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 3)
    with neftune(model, ALPHA):
        here = embedded(model, batch_of(5, 3))
    assert torch.equal(here, draw(model, rank=3))
    assert not torch.equal(here, draw(model, rank=0))


# Scale


def test_noise_alpha_can_be_changed(model: nn.Module) -> None:
    def scaled(noise: Noise, alpha: float) -> np.ndarray:
        noise.alpha = alpha
        noise.begin_step(0)
        return noise_in(model, batch_of(5))

    with neftune(model, 5.0) as noise:
        five, ten, none = scaled(noise, 5.0), scaled(noise, 10.0), scaled(noise, 0.0)
    np.testing.assert_allclose(ten, 2 * five, atol=1e-7)
    assert not none.any()


@pytest.mark.parametrize(("schedule", "share"), [("linear_warmup", (0.0, 0.5, 1.0)), ("linear_decay", (1.0, 0.5, 0.0))])
def test_noise_with_a_schedule_is_scaled(model: nn.Module, schedule: Any, share: tuple[float, float, float]) -> None:
    def run(**options: Any) -> list[np.ndarray]:
        with neftune(model, ALPHA, **options) as noise:
            return [noise_at(noise, step) for step in (0, 4, 8)]

    def noise_at(noise: Noise, step: int) -> np.ndarray:
        noise.begin_step(step)
        return noise_in(model, batch_of(5))

    for constant, moved, part in zip(run(), run(schedule=schedule, total_steps=9), share, strict=True):
        np.testing.assert_allclose(moved, part * constant, atol=1e-7)
        assert moved.any() == (part > 0)


# Layout of the batch


def positional(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model(batch["input_ids"], batch["attention_mask"])


def named(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model(**batch)


def inner(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model.model(**batch)


@pytest.mark.parametrize("call", [positional, named, inner])
def test_noise_reads_the_mask_from_any_call(model: nn.Module, call: Callable[..., None]) -> None:
    seen: list[Tensor] = []
    batch = batch_of(20, 5)
    clean = nn.functional.embedding(batch["input_ids"], model.get_input_embeddings().weight)
    with neftune(model, ALPHA):
        model.get_input_embeddings().register_forward_hook(lambda _m, _a, output: seen.append(output.detach()))
        call(model, batch)
    noise = (seen[0].double() - clean.double()).abs().detach().numpy()
    for row, length in enumerate((20, 5)):
        limit = ALPHA / np.sqrt(np.float64(length) * HIDDEN)
        assert 0.98 * limit < noise[row, :length].max() <= limit * (1 + 1e-6) + 1e-8
        assert not noise[row, length:].any()


def test_noise_rejects_an_embedding_called_outside_the_model(model: nn.Module) -> None:
    with neftune(model, ALPHA), pytest.raises(NeftuneError, match=r"shape \(1, 3\)\n.*call the model itself"):
        model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))


def test_noise_rejects_a_four_dimensional_mask(model: nn.Module) -> None:
    token_ids = torch.tensor([[5, 6, 7, 8]])
    causal = torch.zeros(1, 1, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    with neftune(model, ALPHA, seed=1) as noise:
        with pytest.raises(NeftuneError, match=r"\(1, 1, 4, 4\) for token ids of shape \(1, 4\)"):
            model(input_ids=token_ids, attention_mask=causal)
        noise.begin_step(0)
        positions = torch.tensor([[0, 1, 0, 1]])
        with_mask = embedded(model, {"input_ids": token_ids, "attention_mask": causal, "position_ids": positions})
        noise.begin_step(0)
        alone = embedded(model, {"input_ids": token_ids, "position_ids": positions})
    assert torch.equal(with_mask, alone)


def test_noise_symmetric_rejects_a_batch_that_is_not_doubled(model: nn.Module) -> None:
    batch = batch_of(5, 3)
    doubled = {key: torch.cat([value, value]) for key, value in batch.items()}
    odd = {key: torch.cat([value, value, value[:1]]) for key, value in batch.items()}
    with neftune(model, ALPHA, noise="symmetric"):
        for wrong in (batch, odd, batch_of(7)):
            with pytest.raises(NeftuneError, match=r"every row twice.*\n.*halves differ\n.*paired\("):
                model(**wrong)
        noise = noise_in(model, doubled)
    np.testing.assert_allclose(noise[:2], -noise[2:], atol=1e-7)
    for row, length in enumerate((5, 3)):
        limit = ALPHA / np.sqrt(np.float64(length) * HIDDEN)
        np.testing.assert_allclose(np.abs(noise[row, :length]), limit, rtol=1e-6)
        assert not noise[row, length:].any()


def test_noise_symmetric_rejects_different_documents_of_equal_tokens(model: nn.Module) -> None:
    """Both halves have the same tokens in different documents, so +e and -e would have different scales."""
    token_ids = torch.tensor([[7, 8, 9, 7, 8, 9]])
    positions = torch.tensor([[0, 1, 0, 0, 0, 1]])
    with neftune(model, ALPHA, noise="symmetric"), pytest.raises(NeftuneError, match="every row twice"):
        model(input_ids=token_ids, position_ids=positions)
